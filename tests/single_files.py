"""Small Stable Diffusion 1 and 2 with random weights: a folder in diffusers' layout and the same in one file.

The names in the file are those of the original code, written down here independently of diffusers' conversion.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from nodule_plugin.diffusion.tokenizer import clip_tokenizer


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
    return folder, {
        **{"model.diffusion_model." + original_unet_name(name): value for name, value in unet.state_dict().items()},
        **{"first_stage_model." + name: value for name, value in _original_vae(vae.state_dict()).items()},
        **(_original_clip if version == 1 else _original_open_clip)(encoder.state_dict()),
        "alphas_cumprod": torch.linspace(1, 0, 1000),
    }


def original_unet_name(name: str) -> str:
    """A diffusers U-Net's name in the original code, where levels are numbered on as one list of blocks."""
    for new, old in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    ):
        if name.startswith(new + "."):
            return name.replace(new, old, 1)
    if match := re.match(r"down_blocks\.(\d)\.(resnets|attentions|downsamplers)\.(\d)\.(.*)", name):
        level, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "downsamplers":
            return f"input_blocks.{3 * level + 3}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{3 * level + layer + 1}.{int(kind == 'attentions')}.{_original_resnet(rest)}"
    if match := re.match(r"up_blocks\.(\d)\.(resnets|attentions|upsamplers)\.(\d)\.(.*)", name):
        level, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "upsamplers":
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
        return f"output_blocks.{3 * level + layer}.{int(kind == 'attentions')}.{_original_resnet(rest)}"
    match = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
    assert match is not None, name
    block = 1 if match[1] == "attentions" else 2 * int(match[2])
    return f"middle_block.{block}.{_original_resnet(match[3])}"


def _original_resnet(name: str) -> str:
    for new, old in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):
        if re.match(rf"{new}\.\w+$", name):
            return name.replace(new, old)
    return name


def _original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    original = {}
    for name, value in state.items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in name:
            for new, old in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        original[name] = value
    return original


def _original_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "cond_stage_model.transformer.text_model."
    return {
        **{prefix + name: value for name, value in state.items()},
        prefix + "embeddings.position_ids": torch.arange(77)[None],
    }


def _original_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, with query, key and value in one matrix, and the last layer that is not used."""
    prefix = "cond_stage_model.model."
    original = {
        prefix + "token_embedding.weight": state["embeddings.token_embedding.weight"],
        prefix + "positional_embedding": state["embeddings.position_embedding.weight"],
        prefix + "ln_final.weight": state["final_layer_norm.weight"],
        prefix + "ln_final.bias": state["final_layer_norm.bias"],
        prefix + "text_projection": torch.eye(64),
        prefix + "logit_scale": torch.tensor(4.6),
    }
    for layer in range(24):
        new, old = f"encoder.layers.{min(layer, 22)}.", f"{prefix}transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{new}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            original[f"{old}attn.in_proj_{kind}"] = torch.cat(parts)
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                original[f"{old}{theirs}.{kind}"] = state[f"{new}{ours}.{kind}"]
    return original
