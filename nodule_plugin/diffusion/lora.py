"""Low-rank updates (LoRA) from files with diffusers', peft's or kohya's names, merged into the weights they update.

The conversion of names and the merging are diffusers' and peft's own, so that networks come out as after
``load_lora_weights``. What these only warn of, or pass over, is an error here: an update that has no place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, fuse_text_encoder_lora
from diffusers.utils import convert_unet_state_dict_to_peft, recurse_remove_peft_layers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed
from nodule_plugin.files import replacing
from nodule_plugin.weights import UNREADABLE, one_line, some

LORA_FILE = "pytorch_lora_weights.safetensors"
"""As diffusers calls it."""
_PEFT_PREFIX = "base_model.model."
_PEFT_SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "bias")


@dataclass(frozen=True)
class LowRankUpdates:
    """Updates of a U-Net, of a text encoder or of both.

    Attributes:
        path: of their file.
        tensors: under diffusers' names, which begin with "unet." or "text_encoder.".
        alphas: what an update is scaled by, times its rank, where the file gives it for each.
        settings: peft's, under names that begin likewise, where the file holds them.
    """

    path: Path
    tensors: dict[str, Tensor]
    alphas: dict[str, float] | None
    settings: dict[str, Any] | None

    def of(self, part: str) -> dict[str, Tensor]:
        """The tensors of "unet" or "text_encoder", without that word in their names."""
        prefix = f"{part}."
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def is_lora(content: Mapping[str, Any]) -> bool:
    """Whether a file of weights holds low-rank updates, by its names."""
    return any("lora" in str(name) for name in content)


def read_updates(path: Path, content: Mapping[str, Any], unet_config: Any = None) -> LowRankUpdates:
    """Bring a file's updates to diffusers' names.

    Args:
        path: of the file.
        content: what it holds, see :func:`nodule_plugin.weights.read_content`.
        unet_config: of the U-Net to update, where it is at hand: some names count its blocks.

    Raises:
        InputError: if the names are of no known kind, or peft's settings are missing beside a file of its own.
    """
    settings = _settings(path, any(name.startswith(_PEFT_PREFIX) for name in content))
    tensors = {name.removeprefix(_PEFT_PREFIX): value for name, value in content.items()}
    if not any(name.startswith(("unet.", "text_encoder.", "lora_")) for name in tensors):
        tensors = {f"unet.{name}": value for name, value in tensors.items()}
    try:
        tensors, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors, unet_config=unet_config)
    except UNREADABLE as error:
        raise InputError(f"weights: {path} holds low-rank updates of no known kind: {one_line(error)}") from error
    return LowRankUpdates(path, tensors, alphas, settings)


def check_updates(updates: LowRankUpdates, unet: nn.Module) -> None:
    """Make sure that every update of the U-Net has its place and shape.

    Raises:
        InputError: if one has not, or there is none.
    """
    try:
        tensors = convert_unet_state_dict_to_peft(updates.of("unet"))
    except UNREADABLE as error:
        raise InputError(f"weights: {updates.path}: {one_line(error)}") from error
    if not tensors:
        raise InputError(f"weights: {updates.path} holds no low-rank updates of a U-Net; give another file")
    weights = unet.state_dict()
    lost = []
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".lora_")
        weight = weights.get(f"{module}.weight")
        axis = 1 if kind == "A.weight" else 0
        if kind not in ("A.weight", "B.weight") or weight is None or weight.shape[axis] != tensor.shape[axis]:
            lost.append(name)
    if lost:
        raise InputError(
            f"weights: {updates.path}: {len(lost)} low-rank updates do not fit the base model's U-Net ({some(lost)}); "
            "give the base model that they were trained on"
        )


def merge_into_unet(updates: LowRankUpdates, unet: Any) -> None:
    """Add the updates to the U-Net's weights, in place; each call adds them once more.

    Raises:
        InputError: see :func:`check_updates`; also if peft is not installed.
    """
    add_to_unet(updates, unet)
    unet.fuse_lora()
    unet.unload_lora()


def add_to_unet(updates: LowRankUpdates, unet: Any) -> None:
    """Put the updates beside the U-Net's weights, as peft's layers.

    Raises:
        InputError: see :func:`merge_into_unet`.
    """
    check_updates(updates, unet)
    check_installed("peft", "train")
    options = {"network_alphas": updates.alphas, "metadata": updates.settings}
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(updates.tensors, unet=unet, **options)


def merge_into_text_encoder(updates: LowRankUpdates, encoder: Any) -> None:
    """Add the updates of the text encoder, if there are any, to its weights, in place.

    Raises:
        InputError: if one has no place, or peft is not installed.
    """
    add_to_text_encoder(updates, encoder)
    if updates.of("text_encoder"):
        fuse_text_encoder_lora(encoder)
        recurse_remove_peft_layers(encoder)
        del encoder.peft_config
        encoder._hf_peft_config_loaded = False  # else only updates, which are gone, would be saved


def add_to_text_encoder(updates: LowRankUpdates, encoder: Any) -> None:
    """Put the updates of the text encoder, if there are any, beside its weights, as peft's layers.

    Raises:
        InputError: see :func:`merge_into_text_encoder`.
    """
    tensors = updates.of("text_encoder")
    if not tensors:
        return
    check_installed("peft", "train")
    options = {"network_alphas": updates.alphas, "metadata": updates.settings}
    try:
        StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(updates.tensors, text_encoder=encoder, **options)
    except UNREADABLE as error:
        raise InputError(
            f"weights: {updates.path}: the text encoder's updates do not fit: {one_line(error)}"
        ) from error
    arrived = sum(".lora_A." in name for name, _ in encoder.named_parameters())
    if 2 * arrived != len(tensors):
        raise InputError(
            f"weights: {updates.path}: {arrived} of {len(tensors) // 2} low-rank updates of the text encoder fit the "
            "base model's; give the base model that they were trained on"
        )


def low_rank_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The low-rank updates that peft has added to a network, their scale multiplied in, under diffusers' names.

    A program that is told no alpha takes the rank for it, so that these are scaled by 1 wherever they are loaded.

    Args:
        module: with updates not merged; nothing comes back where there are none.

    Returns:
        Tensors on the CPU: NAME.lora_A.weight (rank, in) and NAME.lora_B.weight (out, rank), in rows and columns.
    """
    tensors = {}
    for name, layer in module.named_modules():
        for adapter in getattr(layer, "lora_A", {}):
            down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            tensors[f"{name}.lora_A.weight"] = down.detach().cpu().contiguous()
            tensors[f"{name}.lora_B.weight"] = (up.detach() * layer.scaling[adapter]).cpu().contiguous()
    return tensors


def save_low_rank(tensors: Mapping[str, Tensor], folder: Path) -> Path:
    """Write ``pytorch_lora_weights.safetensors``, which diffusers' ``load_lora_weights`` and others read.

    Args:
        tensors: under names that begin with "unet." or "text_encoder.".
        folder: of the file.

    Raises:
        OSError: if it cannot be written.
    """
    path = folder / LORA_FILE
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, {"format": "pt"})
    return path


def _settings(path: Path, is_pefts: bool) -> dict[str, Any] | None:
    """peft's settings, from the file beside its own files, or from the header of a safetensors file of diffusers."""
    if is_pefts:
        config = path.with_name("adapter_config.json")
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
            return {f"unet.{name}": settings[name] for name in _PEFT_SETTINGS if name in settings}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"weights: {path} has peft's names, and {config}, which says how to scale it, cannot be read "
                f"({one_line(error)}); keep the two together"
            ) from error
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata[LORA_ADAPTER_METADATA_KEY]) if LORA_ADAPTER_METADATA_KEY in metadata else None
