from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sd import make_tiny_sd

from nodule_plugin.diffusion.components import load_noise_scheduler, load_text_encoder, load_vae
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.handlers.recipe import base_model_hash, differences, training_items_hash

MAY_CHANGE = {
    *("bundle_root", "output_dir", "dataset_dir", "device", "dry_run", "resume", "epochs", "num_workers"),
    *("checkpoint_steps", "keep_checkpoints", "latent_cache", "allow_marked"),
    *("gradient_checkpointing", "channels_last", "compile"),  # another way to the same numbers
    *("val_interval", "val_images", "val_batch_size", "val_guidance_scale", "val_guidance_scales", "val_steps"),
    "select_by",
    *("patience", "overfit_patience", "inception_weights", "scorer"),
}
COVERED = {
    "batch_size": "samples a step",
    "accumulation_steps": "samples a step",
    "seed": "seed",
    "resample_kernel": "chain",
    "revision": "base_model",
    "variant": "base_model",
    "prediction_type": "base_model",
}


def test_every_setting_of_a_training_is_in_its_recipe_or_may_change(repository: Path) -> None:
    config = json.loads((repository / "bundle" / "configs" / "train.json").read_text())
    settings = list(config)[list(config).index("bundle_root") : list(config).index("network_def")]
    assert set(settings) == MAY_CHANGE | set(COVERED) | set(config["recipe"]) - {"chain", "optimizer"}
    assert config["recipe"]["learning_rate"] == "@learning_rate"


def hash_of(base: Path, **options: Any) -> str:
    network = DiffusionUNet.from_base(str(base), **options)
    return base_model_hash(network, load_vae(str(base)), load_text_encoder(str(base)), load_noise_scheduler(str(base)))


def test_the_hash_of_a_base_model_is_of_its_weights_wherever_they_lie(tmp_path: Path) -> None:
    first = hash_of(make_tiny_sd(tmp_path / "a", seed=0))
    copy = make_tiny_sd(tmp_path / "b", seed=0)
    assert hash_of(copy) == first
    assert hash_of(copy, lora_rank=2, gradient_checkpointing=True, channels_last=True) == first
    others = [make_tiny_sd(tmp_path / "c", seed=1), make_tiny_sd(tmp_path / "d", "v_prediction", seed=0)]
    assert len({first, *map(hash_of, others)}) == 3


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_part_of_a_base_model_counts(tmp_path: Path, part: str) -> None:
    base = str(make_tiny_sd(tmp_path))
    parts: dict[str, Any] = {"vae": load_vae(base), "text_encoder": load_text_encoder(base)}
    parts["network"] = DiffusionUNet.from_base(base)
    before = base_model_hash(**parts, noise_scheduler=load_noise_scheduler(base))
    changed = parts["network"].unet if part == "unet" else parts[part]
    with torch.no_grad():
        next(changed.parameters()).add_(1e-3)
    assert base_model_hash(**parts, noise_scheduler=load_noise_scheduler(base)) != before


def test_training_items_are_what_training_sees_of_them(tmp_path: Path) -> None:
    for folder, content in (("a", b"12"), ("b", b"12"), ("c", b"123")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.nii").write_bytes(content)

    def items(folder: str = "a", **changes: Any) -> list[dict[str, Any]]:
        item = {"image": str(tmp_path / folder / "1.nii"), "prompt": "round", "slice_index": 0, "patient_id": "p"}
        return [item | {"centre": [1.0, 2.0], "spacing": [0.7, 0.7], "roi_mm": 20.0} | changes]

    first = training_items_hash(items())
    assert training_items_hash(items("b", patient_id="q")) == first
    others = [items("c"), items(prompt="oval"), items(roi_mm=21.0), items(slice_index=1), items() * 2, items()[:0]]
    assert len({first, *map(training_items_hash, others)}) == 7


def test_differences_are_of_what_the_old_one_says() -> None:
    assert differences({"a": 1, "b": 2.0, "c": "x"}, {"a": 1, "b": 2, "c": "y", "d": 4}) == ["c x, not y"]
