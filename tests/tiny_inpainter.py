"""A very small inpainting model with random weights, for tests."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from small_models.base_model import build_scheduler
from tiny_sd import make_tiny_sd

from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.network import PixelAutoencoder

GRID = Grid((2.0, 1.0, 1.0), (4, 16, 16), (-1024, 976))


def make_tiny_inpainter(folder: Path, grid: Grid = GRID, slices: int = 4) -> Path:
    """A model of several slices at once, or with ``slices`` 1 of Stable Diffusion's layout, with random weights."""
    make_tiny_sd(folder, levels=2, inpainting=True)
    if slices > 1:
        torch.manual_seed(0)
        UNet2DConditionModel(
            in_channels=9 * slices,
            out_channels=4 * slices,
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=2,
            cross_attention_dim=16,
            class_embed_type="timestep",
        ).save_pretrained(folder / "unet")
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        PixelAutoencoder(slices, -0.5, 2.0).save_pretrained(folder / "vae")
        build_scheduler("sample").save_pretrained(folder / "scheduler")
    (folder / "grid.json").write_text(json.dumps(asdict(grid)))
    return folder
