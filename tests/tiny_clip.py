"""A very small open_clip model with random weights in open_clip's folder layout, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

MODEL_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``; loaded as ``local-dir:FOLDER``."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip.CLIP(**MODEL_CONFIG)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
