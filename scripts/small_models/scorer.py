"""A small CLIP of chest CT nodules and their prompts: the stand-in behind the metrics where no published weights are.

Its image tower is the "tiny nodule encoder" of the distances between sets, its two towers give the "Tiny CLIPScore". It
is saved in open_clip's folder layout and loaded by the code that loads CLIP and BiomedCLIP. Its numbers compare sets
measured with it; they are not FID, KID, LPIPS or CLIPScore and never go by those names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from nodule_plugin.extras import Extra
from nodule_plugin.files import write_json
from small_models.contrast import train_pair
from small_models.examples import IMAGE_SIZE, Examples

open_clip = Extra("open_clip", "evaluate")

MODEL_CONFIG: Mapping[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""In open_clip's terms: a ResNet of four one-block stages, and a two-layer text transformer on CLIP's vocabulary."""
PREPROCESS_CONFIG: Mapping[str, Any] = {
    "size": IMAGE_SIZE,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def train_scorer(
    examples: Examples, config: Mapping[str, Any] = MODEL_CONFIG, seed: int = 0, **settings: Any
) -> nn.Module:
    """A small CLIP trained from scratch.

    Args:
        examples: image-prompt pairs.
        config: architecture in open_clip's terms.
        seed: of initial weights, batches and views.
        settings: see :func:`small_models.contrast.train_pair`.
    """
    torch.manual_seed(seed)
    return train_pair(open_clip.CLIP(**config), open_clip.SimpleTokenizer(), examples, seed=seed, **settings)


def save_scorer(model: nn.Module, folder: Path, card: str, config: Mapping[str, Any] = MODEL_CONFIG) -> None:
    """Write the model in open_clip's folder layout, weights with 16 bits, and its model card.

    Nothing half-written stays: each file is written under another name in the same folder first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    settings = {"model_cfg": config, "preprocess_cfg": PREPROCESS_CONFIG}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        save_file(weights, Path(scratch) / "open_clip_model.safetensors")
        write_json(Path(scratch) / "open_clip_config.json", settings)
        (Path(scratch) / "README.md").write_text(card)
        for file in Path(scratch).iterdir():
            file.replace(folder / file.name)
