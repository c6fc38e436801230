"""Stable Diffusion 1 and 2 from a single file (.safetensors, .ckpt), by diffusers' conversion and without the hub.

Such a file holds the weights under the names of the original code. The rest is in the original's YAML: one of the same
name beside the file is read, as other programs do; else the published one of the family (version 1 has OpenAI's
text encoder, version 2 OpenCLIP's), with the widths that the weights have. Where the file holds a moving average of the
U-Net beside its last weights, the average is taken, as in the published folders.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nodule_plugin.diffusion.model_kinds import refuse_other_kinds, refuse_other_unets
from nodule_plugin.diffusion.tokenizer import clip_tokenizer
from nodule_plugin.errors import InputError
from nodule_plugin.weights import UNREADABLE, load_strictly, one_line, read_content, some

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
"""How the names of each part begin."""
_UNET_IN, _UNET_CONTEXT, _VAE_IN = (
    UNET + "input_blocks.0.0.weight",
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    VAE + "encoder.conv_in.weight",
)
_AVERAGE = "model_ema.diffusion_model"
_AVERAGE_IN = "model_ema.diffusion_modelinput_blocks00weight"
_CLIP_EMBEDDING = "text_model.embeddings.token_embedding.weight"
PREDICTIONS = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}
"""What a U-Net predicts, in the original code's word and diffusers'."""
_HEAD_WIDTH = 64  # of both text encoders, and of the U-Net of version 2
_FROM_LDM_CLIP = {"text_model.embeddings.position_ids", "text_projection.weight"}  # held beside what the encoder needs


class SingleFile:
    """A Stable Diffusion 1 or 2 checkpoint in one file.

    Args:
        path: of the file, which is read as :func:`nodule_plugin.weights.read_content` does.

    Raises:
        InputError: if it cannot be read, or is not a whole Stable Diffusion 1 or 2.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = read_content(self.path, "base_model")
        refuse_other_kinds("base_model", str(self.path), content)
        # Files merged by older programs leave a level of the text encoder's names out.
        self.tensors = {
            re.sub(rf"^{CLIP}(?=embeddings|encoder|final)", CLIP + "text_model.", name): value
            for name, value in content.items()
            if isinstance(value, Tensor)
        }
        self.is_version_2 = OPEN_CLIP + "token_embedding.weight" in self.tensors
        embedding = [] if self.is_version_2 else [CLIP + _CLIP_EMBEDDING]
        lacking = [name for name in (_UNET_IN, _UNET_CONTEXT, _VAE_IN, *embedding) if name not in self.tensors]
        if lacking:
            raise InputError(
                f"base_model: {self.path} is no whole Stable Diffusion 1 or 2: there is no {some(lacking)}; "
                "give one with U-Net, autoencoder and text encoder, or a folder in diffusers' layout"
            )
        self.original_config = self._read_yaml() or published_config(self.tensors, self.is_version_2)

    def unet(self) -> UNet2DConditionModel:
        """The denoising U-Net in float32.

        Raises:
            InputError: if weights are missing or left over, as of the other parts too.
        """
        config = self._config(create_unet_diffusers_config_from_ldm)
        config["in_channels"] = self.tensors[_UNET_IN].shape[1]
        refuse_other_unets("base_model", str(self.path), config)
        state = original_unet_weights(self.tensors, config)
        return self._filled(UNet2DConditionModel.from_config(config), state, "U-Net")

    def vae(self) -> AutoencoderKL:
        """The autoencoder in float32."""
        config = self._config(create_vae_diffusers_config_from_ldm)
        state = _with_unused(convert_ldm_vae_checkpoint(self.tensors, config), self.tensors, VAE)
        return self._filled(AutoencoderKL.from_config(config), state, "autoencoder")

    def text_encoder(self) -> CLIPTextModel:
        """The text encoder in float32; of version 2 without its last layer, as Stable Diffusion uses it."""
        prefix, embedding, layer = (
            (OPEN_CLIP, "token_embedding.weight", "transformer.resblocks.{}.ln_1.bias")
            if self.is_version_2
            else (CLIP, _CLIP_EMBEDDING, "text_model.encoder.layers.{}.layer_norm1.bias")
        )
        tokens, width = self.tensors[prefix + embedding].shape
        layers = next(index for index in count() if prefix + layer.format(index) not in self.tensors)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=tokens,
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_hidden_layers=layers - 1 if self.is_version_2 else layers,
                num_attention_heads=max(1, width // _HEAD_WIDTH),
                hidden_act="gelu" if self.is_version_2 else "quick_gelu",
            )
        )
        if self.is_version_2:
            state = convert_open_clip_checkpoint(encoder, self.tensors, prefix)
        else:
            state = convert_ldm_clip_checkpoint(self.tensors)
        state = {name.removeprefix("text_model."): state[name] for name in state if name not in _FROM_LDM_CLIP}
        return self._filled(encoder, state, "text encoder")

    def tokenizer(self) -> CLIPTokenizer:
        """CLIP's, which is the same for all: no such file holds one."""
        return clip_tokenizer("!" if self.is_version_2 else "<|endoftext|>")

    def scheduler_config(self, prediction_type: str | None = None) -> dict[str, Any]:
        """The noise schedule as a scheduler's configuration.

        Args:
            prediction_type: what the U-Net predicts; None for what the YAML says, or epsilon for version 1.

        Raises:
            InputError: if it is not known: the models of version 2 of either kind have the same names and shapes.
        """
        parameters = self.original_config["model"]["params"]
        if prediction_type is None:
            prediction_type = PREDICTIONS.get(parameters.get("parameterization"))
        if prediction_type is None:
            raise InputError(
                f"prediction_type: {self.path} is of Stable Diffusion 2, and the file does not say what it predicts; "
                "give v_prediction for those made at 768 pixels (768-v-ema), epsilon for 512-base-ema"
            )
        return {
            "beta_start": parameters["linear_start"],
            "beta_end": parameters["linear_end"],
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": parameters.get("timesteps", 1000),
            "prediction_type": prediction_type,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
        }

    def _read_yaml(self) -> dict[str, Any] | None:
        path = self.path.with_suffix(".yaml")
        if not path.is_file():
            return None
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            parameters = config["model"]["params"]
            for needed in ("unet_config", "first_stage_config", "linear_start", "linear_end"):
                parameters[needed]
            parameters.setdefault("parameterization", "eps")  # as in the original code
        except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError) as error:
            raise InputError(
                f"base_model: {path}, beside the checkpoint, is not its original configuration ({one_line(error)}); "
                "correct or rename it"
            ) from error
        return config

    def _config(self, create: Any) -> dict[str, Any]:
        try:
            return create(self.original_config, self.tensors)
        except UNREADABLE as error:
            raise InputError(f"base_model: the configuration of {self.path} lacks {one_line(error)}") from error

    def _filled(self, network: Any, state: Mapping[str, Tensor], part: str) -> Any:
        load_strictly(network, state, f"base_model: {self.path}", f"a Stable Diffusion's {part}")
        return network


def is_single_file(content: Mapping[str, Any]) -> bool:
    """Whether a file of weights holds a U-Net under the names of the original code."""
    return _UNET_IN in content


def original_unet_weights(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A U-Net's weights from the original code's names to diffusers'; of a moving average where the file holds one.

    Args:
        tensors: of the whole file.
        config: diffusers' of the U-Net.

    Returns:
        Also, under their own names, those that the conversion has no use for.
    """
    state = convert_ldm_unet_checkpoint(dict(tensors), config, extract_ema=True)
    is_averaged = state["conv_in.weight"] is tensors.get(_AVERAGE_IN)
    return _with_unused(state, tensors, _AVERAGE if is_averaged else UNET)


def _with_unused(state: Mapping[str, Tensor], tensors: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The converted weights, and those below ``prefix`` that none of them is or shows a part of."""
    state = {name: value for name, value in state.items() if value is not None}
    used = {value.data_ptr() for value in state.values()}
    rest = {n: v for n, v in tensors.items() if n.startswith(prefix) and isinstance(v, Tensor)}
    return state | {name: value for name, value in rest.items() if value.data_ptr() not in used}


def published_config(tensors: Mapping[str, Tensor], is_version_2: bool) -> dict[str, Any]:
    """v1-inference.yaml or v2-inference.yaml as published, with the widths of these weights.

    Of version 2 it does not say what the U-Net predicts.

    Args:
        tensors: of the whole file, under the original names.
        is_version_2: by its text encoder.
    """
    config = copy.deepcopy(_PUBLISHED)
    parameters = config["model"]["params"]
    unet = parameters["unet_config"]["params"]
    unet |= {"model_channels": tensors[_UNET_IN].shape[0], "context_dim": tensors[_UNET_CONTEXT].shape[1]}
    parameters["first_stage_config"]["params"]["ddconfig"]["ch"] = tensors[_VAE_IN].shape[0]
    if is_version_2:
        unet |= {"num_head_channels": _HEAD_WIDTH, "use_linear_in_transformer": True}
        parameters["cond_stage_config"] = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        }
    else:
        unet["num_heads"] = 8
        parameters["parameterization"] = "eps"
        parameters["cond_stage_config"] = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    return config


_PUBLISHED: dict[str, Any] = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.012,
            "num_timesteps_cond": 1,
            "timesteps": 1000,
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "image_size": 64,
            "channels": 4,
            "cond_stage_trainable": False,
            "conditioning_key": "crossattn",
            "scale_factor": 0.18215,
            "use_ema": False,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    "image_size": 32,  # unused
                    "in_channels": 4,
                    "out_channels": 4,
                    "attention_resolutions": [4, 2, 1],
                    "num_res_blocks": 2,
                    "channel_mult": [1, 2, 4, 4],
                    "use_spatial_transformer": True,
                    "transformer_depth": 1,
                    "use_checkpoint": True,
                    "legacy": False,
                },
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {
                        "double_z": True,
                        "z_channels": 4,
                        "resolution": 256,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch_mult": [1, 2, 4, 4],
                        "num_res_blocks": 2,
                        "attn_resolutions": [],
                        "dropout": 0.0,
                    },
                    "lossconfig": {"target": "torch.nn.Identity"},
                },
            },
        },
    }
}
"""What the published files of both versions have in common."""
