"""Which kind of model a file or a configuration is of, told by its names: those that cannot be used here, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nodule_plugin.errors import InputError

_BY_NAME = (
    (r"lora_te2_|^conditioner\.embedders|(^|\.)add_embedding\.", "Stable Diffusion XL"),
    (r"(^|[._])joint_blocks[._]|^(lora_)?transformer[._](transformer_blocks|joint_blocks)", "Stable Diffusion 3"),
    (r"(^|[._])double_blocks[._]|single_transformer_blocks", "Flux"),
    (r"^(image_proj|ip_adapter)(\.|$)", "an IP-Adapter"),
    (r"^(emb_params|string_to_param|string_to_token|clip_[gl])$|^<.*>$", "a textual inversion"),
    (r"^control_model\.|controlnet_|^input_hint_block|^lora_controlnet$", "a ControlNet"),
    (r"motion_modules", "a motion module of AnimateDiff"),
    (r"\.(hada_w|lokr_w|oft_|on_input$|diff$|a1\.weight$)", "a LyCORIS network other than LoRA"),
    (r"dora_scale|lora_magnitude_vector", "a DoRA network"),
)
_CHANNELS = {9: "inpainting", 8: "InstructPix2Pix", 7: "upscaling", 5: "depth to image"}
_UNET = re.compile(r"^(unet\.)?(model\.diffusion_model\.|conv_in\.|down_blocks\.)|lora")
_PARTS = (
    (r"^(first_stage_model\.|vae\.)?(encoder\.(conv_in|down)|decoder\.(conv_in|up))", "an autoencoder (VAE) alone"),
    (r"^(text_model|cond_stage_model)\.|^(text_model\.)?encoder\.layers\.", "a text encoder alone"),
)


def refuse_other_kinds(setting: str, where: str, content: Any) -> None:
    """Name what a file of weights is, where it is of a kind that cannot be used.

    Args:
        setting, where: for the message.
        content: as :func:`nodule_plugin.weights.read_content` gives it.

    Raises:
        InputError: if it is known as of another kind, or nothing with names.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{setting}: {where} holds a {type(content).__name__}, not weights by name; give a state dict")
    names = [str(name) for name in content]
    kind = _first_match(_BY_NAME, names)
    if kind is None and not any(_UNET.search(name) for name in names):
        kind = _first_match(_PARTS, names)
    if kind is None and {"network", "optimizer"} <= set(names):
        raise InputError(f"{setting}: {where} is a training checkpoint; give the model.pt that training exports")
    if kind is not None:
        raise InputError(
            f"{setting}: {where} is of {kind}; only Stable Diffusion 1 and 2 for text to image can be used"
        )


def refuse_other_unets(setting: str, where: str, config: Mapping[str, Any]) -> None:
    """Name what a U-Net's configuration is of, where it takes more than noisy latents and a prompt.

    Args:
        setting, where: for the message.
        config: diffusers' configuration of a UNet2DConditionModel.

    Raises:
        InputError: if it does.
    """
    channels = config.get("in_channels", 4)
    kind = None
    if config.get("addition_embed_type") == "text_time":
        kind = "Stable Diffusion XL"
    elif channels != config.get("out_channels", 4):
        kind = f"{_CHANNELS.get(channels, 'another model')} ({channels} input channels)"
    elif config.get("class_embed_type") or config.get("num_class_embeds") or config.get("addition_embed_type"):
        kind = "a model with a further condition beside the prompt"
    if kind is not None:
        raise InputError(
            f"{setting}: {where} is of {kind}; only Stable Diffusion 1 and 2 for text to image can be used"
        )


def unet_kind(first_weight: Any) -> str:
    """ " (KIND)" of a U-Net that takes more than noisy latents, by its first layer's weights; else nothing."""
    channels = first_weight.shape[1] if hasattr(first_weight, "shape") else 4
    return f" ({_CHANNELS[channels]})" if channels in _CHANNELS else ""


def _first_match(marks: Iterable[tuple[str, str]], names: list[str]) -> str | None:
    return next((kind for pattern, kind in marks if any(re.search(pattern, name) for name in names)), None)
