"""Models that an audit compares with: trained by the bundle's own training on chosen patients alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from monai.bundle import ConfigWorkflow

from nodule_plugin.data.datalist import read_datalist, write_datalist
from nodule_plugin.data.split import SPLITS
from nodule_plugin.diffusion.components import load_text_encoder, load_vae, weights_fingerprint
from nodule_plugin.diffusion.fine_tuned import load_weights
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.errors import InputError
from nodule_plugin.files import new_folder

logger = logging.getLogger(__name__)
_SHARED = ("vae", "text_encoder", "tokenizer", "scheduler")


def balanced_halves(patients: Sequence[str], count: int, seed: int = 0) -> list[set[str]]:
    """Random halves of the patients in complementary pairs, so that every patient is outside of every second half.

    Args:
        patients: distinct.
        count: of halves, even, 4 or more: each patient needs two models that did not see them.
        seed: of the draw.

    Raises:
        InputError: if ``count`` is none of these.
    """
    if count < 4 or count % 2:
        raise InputError(f"reference_models: an even number of 4 or above is needed, not {count}")
    draw, ordered, halves = np.random.default_rng(seed), sorted(patients), []
    for _ in range(count // 2):
        first = {str(patient) for patient in draw.permutation(ordered)[: len(ordered) // 2]}
        halves += [first, set(ordered) - first]
    return halves


def small_base(base_model: str, folder: str | Path, divisor: int, seed: int = 0) -> str:
    """A base model with an untrained, narrower U-Net; all else is linked from the audited model's.

    Args:
        base_model: a folder in diffusers' layout.
        folder: to write it into; one that is there from an earlier run is taken again.
        divisor: of the U-Net's widths.
        seed: of its weights.

    Returns:
        The base model's own folder.

    Raises:
        InputError: if the base model is no folder, or its widths cannot be divided so.
    """
    if not (Path(base_model) / "unet" / "config.json").is_file():
        raise InputError(f"reference_base: {base_model} is no folder with a unet; give a base model for the references")
    config = dict(UNet2DConditionModel.load_config(base_model, subfolder="unet"))
    widths = [width // divisor for width in config["block_out_channels"]]
    groups = int(np.gcd.reduce([config["norm_num_groups"], *widths]))
    heads = config["attention_head_dim"]
    heads = [max(1, each // divisor) for each in (heads if isinstance(heads, list) else [heads] * len(widths))]
    if not all(width and width % head == 0 for width, head in zip(widths, heads)):
        raise InputError(f"reference_base: the widths of {base_model} cannot be divided by {divisor}; give another one")
    torch.manual_seed(seed)
    changed = {"block_out_channels": widths, "norm_num_groups": groups, "attention_head_dim": heads}
    return linked_base(UNet2DConditionModel.from_config({**config, **changed}), base_model, folder)


def linked_base(unet: UNet2DConditionModel, base_model: str, folder: str | Path) -> str:
    """A base model with this U-Net whose other parts are links to those of ``base_model``.

    Args:
        unet: copied.
        base_model: a folder in diffusers' layout.
        folder: to write it into; one that is there from an earlier run is taken again.

    Returns:
        The base model's own folder.
    """
    shared = {name: str((Path(base_model) / name).resolve()) for name in _SHARED}
    decides = weights_fingerprint(unet) + json.dumps(shared)
    base = Path(folder) / f"base_{sha256(decides.encode()).hexdigest()[:16]}"
    if not base.is_dir():
        with new_folder(base) as partial:
            unet.save_pretrained(partial / "unet")
            for name, path in shared.items():
                (partial / name).symlink_to(path)
            (partial / "model_index.json").write_text((Path(base_model) / "model_index.json").read_text())
    return str(base)


class ReferenceTrainer:
    """Trains models on chosen patients of a data list, each once: what ``folder`` holds is not trained again.

    Args:
        config: the bundle's train.json.
        datalist: whose patients are chosen from, whatever their split.
        base_model: what every model starts from, unless it is given a U-Net of its own.
        folder: for all that is kept; a folder in it a model.
        settings: of train.json that all models share; ``dataset_dir`` (None for the one that the data list names) says
            where the images are.
    """

    def __init__(
        self, config: str, datalist: str, base_model: str, folder: str | Path, settings: Mapping[str, Any]
    ) -> None:
        self.config, self.base_model, self.folder, self.settings = config, base_model, Path(folder), dict(settings)
        self.content = read_datalist(Path(datalist))
        given = self.settings.pop("dataset_dir", None)
        root = Path(datalist).parent / self.content["dataset_dir"] if given is None else Path(given)
        self.root = str(root.absolute())

    def train(
        self, patients: Iterable[str], settings: Mapping[str, Any], unet: UNet2DConditionModel | None = None
    ) -> DiffusionUNet:
        """A model trained on these patients.

        Args:
            patients: to learn from, all their nodules in the data list.
            settings: of train.json.
            unet: that it starts from; None for the base model's.
        """
        base = self.base_model if unet is None else linked_base(unet, self.base_model, self.folder)
        parts = (DiffusionUNet.from_base(base).unet, load_vae(base), load_text_encoder(base))
        chosen = sorted(patients)
        items = [item for split in SPLITS for item in self.content[split] if item["patient_id"] in set(chosen)]
        subset = {**self.content, "dataset_dir": self.root, "training": items}
        subset |= {"validation": [], "test": [], "numTraining": len(items), "numValidation": 0, "numTest": 0}
        decides = json.dumps(
            [[*map(weights_fingerprint, parts)], subset, self.settings, dict(settings)], sort_keys=True, default=str
        )
        folder = self.folder / sha256(decides.encode()).hexdigest()[:16]
        weights = folder / "models" / "model.pt"
        if not weights.is_file():  # written at the end of a training alone
            logger.info("training a model on %d images of %d patients in %s", len(items), len(chosen), folder)
            write_datalist(subset, folder / "datalist.json")
            self._run(
                {**settings, "base_model": base, "datalist": str(folder / "datalist.json"), "output_dir": str(folder)}
            )
        network = DiffusionUNet.from_base(base)
        load_weights(weights, network)
        return network.eval()

    def _run(self, settings: Mapping[str, Any]) -> None:
        workflow = ConfigWorkflow(
            config_file=self.config,
            logging_file=False,
            workflow_type="train",
            allow_marked=True,  # whoever trained the audited model was warned
            **self.settings,
            **settings,
        )
        workflow.initialize()
        workflow.run()
