"""A whole model as a folder that ``diffusers.StableDiffusionPipeline.from_pretrained`` reads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from nodule_plugin.diffusion.model import FineTunedModel, Source, load_model
from nodule_plugin.export.model import refuse_difference
from nodule_plugin.files import write_json


def write_pipeline(model: FineTunedModel, folder: Path, fp16: bool = False) -> dict[str, float]:
    """Write ``model_index.json`` and a folder for each part, weights as safetensors.

    The pipeline makes images of the model's size by itself and samples with the model's scheduler; at equal latents,
    guidance and steps it gives the images that this package generates.

    Args:
        model: to write.
        folder: that exists.
        fp16: beside the weights also write the variant "fp16" of each.

    Returns:
        "model_index.json" -> how far what was written is from the model, see
        :func:`nodule_plugin.export.model.refuse_difference`.

    Raises:
        InputError: if it is too far.
    """
    parts = {"unet": model.network.unet, "vae": model.vae, "text_encoder": model.text_encoder}
    if fp16:  # first: the configurations that stay are those of the full weights
        for name, part in parts.items():
            half: Any = copy.deepcopy(part).half()
            half.save_pretrained(folder / name, variant="fp16")
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=model.tokenizer,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    for config in folder.rglob("*.json"):
        forget_origin(config)
    return {"model_index.json": refuse_difference(model, load_model(Source(str(folder))))}


def forget_origin(file: Path) -> None:
    """Remove from a configuration the folder that a part was loaded from: a path of this machine."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        write_json(file, config, indent=2)
