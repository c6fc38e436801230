"""Small Stable Diffusion 1 and 2 with random weights: a folder in diffusers' layout, and tensors by original names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from nodule_plugin.diffusion.tokenizer import clip_tokenizer
from nodule_plugin.export.compvis import original_tensors


def make_pair(folder: Path, version: int, prediction_type: str = "epsilon") -> tuple[Path, dict[str, Tensor]]:
    """Write the folder; the same weights come back under the names of the original code.

    Widths are the smallest that Stable Diffusion's constants allow: 32 groups in a normalisation, 8 heads in version 1,
    64 channels a head in version 2 and in both text encoders.
    """
    torch.manual_seed(version)
    width = 32 if version == 1 else 64
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        attention_head_dim=8 if version == 1 else [1, 2, 4, 4],
        cross_attention_dim=64,
        use_linear_projection=version == 2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=0.18215,
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_attention_heads=1,
            num_hidden_layers=3 if version == 1 else 23,
            hidden_act="quick_gelu" if version == 1 else "gelu",
        )
    )
    for part, model in (("unet", unet), ("vae", vae), ("text_encoder", encoder)):
        model.save_pretrained(folder / part)
    clip_tokenizer("<|endoftext|>" if version == 1 else "!").save_pretrained(folder / "tokenizer")
    scheduler = {  # as published: what it leaves out each scheduler class decides by itself
        "_class_name": "PNDMScheduler" if version == 1 else "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder, original_tensors(unet, vae, encoder) | {"alphas_cumprod": torch.linspace(1, 0, 1000)}
