"""Low-rank updates by themselves, as ``load_lora_weights`` of diffusers and user interfaces read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nodule_plugin.diffusion.components import load_text_encoder, load_unet
from nodule_plugin.diffusion.fine_tuned import weights_file
from nodule_plugin.diffusion.lora import (
    LORA_FILE,
    add_to_text_encoder,
    add_to_unet,
    is_lora,
    low_rank_tensors,
    read_updates,
    save_low_rank,
)
from nodule_plugin.diffusion.model import FineTunedModel, load_model
from nodule_plugin.errors import InputError
from nodule_plugin.export.model import refuse_difference
from nodule_plugin.weights import read_content


def write_low_rank(model: FineTunedModel, folder: Path) -> dict[str, float]:
    """Write ``pytorch_lora_weights.safetensors``.

    Args:
        model: whose weights are low-rank updates in any form that can be loaded, or a ``model.pt`` that has them beside
            it, as training writes it.
        folder: that exists.

    Returns:
        The file's name -> how far the base model with what was written is from the model, see
        :func:`nodule_plugin.export.model.refuse_difference`.

    Raises:
        InputError: if there are no updates, or it is too far.
    """
    source = model.source
    file = weights_file(source.weights)
    file = beside if (beside := file.with_name(LORA_FILE)).is_file() else file
    content = read_content(file, "weights")
    if not is_lora(content):
        raise InputError(
            f"weights: {file} holds all weights of a U-Net and there is no {LORA_FILE} beside it; give low-rank "
            "updates (training with lora_rank writes them), or another --format"
        )
    base = (source.base_model, source.revision, source.variant)
    parts: dict[str, Any] = {"unet": load_unet(*base), "text_encoder": load_text_encoder(*base)}
    updates = read_updates(file, content, parts["unet"].config)
    add_to_unet(updates, parts["unet"])
    add_to_text_encoder(updates, parts["text_encoder"])
    written = save_low_rank(
        {f"{part}.{name}": value for part, module in parts.items() for name, value in low_rank_tensors(module).items()},
        folder,
    )
    return {LORA_FILE: refuse_difference(model, load_model(replace(source, weights=str(written))))}
