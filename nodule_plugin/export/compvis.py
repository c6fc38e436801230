"""A whole model in one file under the names of the original code (CompVis, Stability AI), as user interfaces read it.

The inverse of :mod:`nodule_plugin.diffusion.single_file`, which reads back what is written here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from nodule_plugin.diffusion.model import FineTunedModel, Source, load_model
from nodule_plugin.diffusion.single_file import CLIP, OPEN_CLIP, PREDICTIONS, UNET, VAE, published_config
from nodule_plugin.errors import InputError
from nodule_plugin.export.model import NOTICE, refuse_difference

FILE_NAME = "model"
_UNET_LAYERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)")
_MID_BLOCK = re.compile(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)")
_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "unet": {
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "transformer_layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    },
    "vae": {
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
    },
}
"""What all Stable Diffusions 1 and 2 have in common, and the names in one file have no place to say otherwise."""


def write_single_file(model: FineTunedModel, folder: Path, fp16: bool = False) -> dict[str, float]:
    """Write ``model.safetensors`` and, beside it, the original code's configuration ``model.yaml``.

    Version 2 (by its text encoder) gets OpenCLIP's names. Its last layer, which Stable Diffusion never uses and
    diffusers does not keep, is a copy of the one before it.

    Args:
        model: of Stable Diffusion's architecture, version 1 or 2, of any width.
        folder: that exists.
        fp16: also write ``model.fp16.safetensors``, with 16 bits.

    Returns:
        "model.safetensors" -> how far what was written is from the model, see
        :func:`nodule_plugin.export.model.refuse_difference`.

    Raises:
        InputError: if the model is of another architecture, or what was written is too far from it.
    """
    _check_architecture(model)
    tensors = original_tensors(model.network.unet, model.vae, model.text_encoder)
    file = folder / f"{FILE_NAME}.safetensors"
    metadata = _model_spec(model)
    save_file(tensors, file, metadata)
    config = yaml.safe_dump(_original_config(model, tensors), sort_keys=False)
    file.with_suffix(".yaml").write_text(config, encoding="utf-8")
    if fp16:
        half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
        save_file(half, folder / f"{FILE_NAME}.fp16.safetensors", metadata)
        (folder / f"{FILE_NAME}.fp16.yaml").write_text(config, encoding="utf-8")
    return {file.name: refuse_difference(model, load_model(Source(str(file))))}


def original_tensors(unet: Any, vae: Any, text_encoder: Any) -> dict[str, Tensor]:
    """The weights of all parts under the names of the original code, none of them sharing memory."""
    tensors = {UNET + unet_name(name): value for name, value in unet.state_dict().items()}
    tensors |= {VAE + name: value for name, value in _vae_tensors(vae.state_dict())}
    encode = _open_clip_tensors if is_version_2(text_encoder) else _clip_tensors
    tensors |= encode(text_encoder.state_dict())
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def is_version_2(text_encoder: Any) -> bool:
    """Whether a text encoder is OpenCLIP's, which tells it from OpenAI's by the activation."""
    return bool(text_encoder.config.hidden_act == "gelu")


def _check_architecture(model: FineTunedModel) -> None:
    for part, config in {"unet": model.network.unet.config, "vae": model.vae.config}.items():
        for name, needed in _ARCHITECTURE[part].items():
            found = list(config[name]) if isinstance(config[name], tuple) else config[name]
            if found != needed:
                raise InputError(
                    f"format: the {part} has {name} {found}, and a single file can only hold Stable Diffusion 1 or 2, "
                    f"which has {needed}; give --format diffusers"
                )


def _original_config(model: FineTunedModel, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    content = published_config(tensors, is_version_2(model.text_encoder))
    schedule, parameters = model.scheduler.config, content["model"]["params"]
    parameters |= {
        "parameterization": _parameterization(model),
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "timesteps": schedule.num_train_timesteps,
        "scale_factor": model.vae.config.scaling_factor,
        "image_size": model.latent_shape[1],
    }
    return content


def _model_spec(model: FineTunedModel) -> dict[str, str]:
    """What user interfaces show of a file: Stability AI's model metadata specification 1.0.0."""
    version = "v2-512" if is_version_2(model.text_encoder) else "v1"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{version}",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": "Chest CT lung nodules",
        "modelspec.description": NOTICE,
        "modelspec.resolution": f"{model.image_size}x{model.image_size}",
        "modelspec.prediction_type": {"eps": "epsilon"}.get(_parameterization(model), _parameterization(model)),
    }


def _parameterization(model: FineTunedModel) -> str:
    return next(old for old, new in PREDICTIONS.items() if new == model.scheduler.config.prediction_type)


def unet_name(name: str) -> str:
    """A diffusers U-Net's name in the original code, where levels are numbered on as one list of blocks."""
    for new, old in _UNET_LAYERS.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    if match := _BLOCK.fullmatch(name):
        way, level, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{3 * level + 3}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":  # the lowest level has no attention before it
            return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
        block = f"input_blocks.{3 * level + layer + 1}" if way == "down" else f"output_blocks.{3 * level + layer}"
        return f"{block}.{int(kind == 'attentions')}.{_resnet_name(rest)}"
    match = _MID_BLOCK.fullmatch(name)
    if match is None:
        raise InputError(f"format: the U-Net's {name} has no name in a single file; give --format diffusers")
    block_number = 1 if match[1] == "attentions" else 2 * int(match[2])
    return f"middle_block.{block_number}.{_resnet_name(match[3])}"


def _resnet_name(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{_RESNET_LAYERS.get(layer, layer)}.{kind}"


def _vae_tensors(state: Mapping[str, Tensor]) -> Any:
    for name, value in state.items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)\.(\w+)", name):
            name = f"{match[1]}mid.attn_1.{_VAE_ATTENTION[match[2]]}.{match[3]}"
            value = value[:, :, None, None] if value.ndim == 2 else value  # 1 x 1 convolutions, as they once were
        yield name, value


def _clip_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{CLIP}text_model."
    positions = torch.arange(len(state["embeddings.position_embedding.weight"]))[None]
    return {prefix + name: value for name, value in state.items()} | {f"{prefix}embeddings.position_ids": positions}


def _open_clip_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, with query, key and value in one matrix, and the last layer, which is not used."""
    width = state["final_layer_norm.weight"].numel()
    original = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.eye(width),
        "logit_scale": torch.tensor(100.0).log(),
    }
    layers = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.layers\.(\d+)\.", name)))
    for layer in range(layers + 1):
        new, old = f"encoder.layers.{min(layer, layers - 1)}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{new}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            original[f"{old}attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, theirs in _OPEN_CLIP_LAYERS.items():
                original[f"{old}{theirs}.{kind}"] = state[f"{new}{ours}.{kind}"]
    return {OPEN_CLIP + name: value for name, value in original.items()}
