"""Fine-tuned weights in the forms that users have them, put into a base model's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nodule_plugin.diffusion.lora import LowRankUpdates, check_updates, is_lora, merge_into_unet, read_updates
from nodule_plugin.diffusion.model_kinds import refuse_other_kinds, unet_kind
from nodule_plugin.diffusion.single_file import is_single_file, original_unet_weights
from nodule_plugin.errors import InputError
from nodule_plugin.weights import file_sha256, read_content, weights_sha256

BASE_WEIGHTS = "base"
"""What the setting "weights" says for the base model's own."""

WEIGHTS_IN_FOLDERS = (
    *(f"unet/diffusion_pytorch_model{end}" for end in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")),
    *(f"diffusion_pytorch_model{end}" for end in (".safetensors", ".bin")),
    *(f"{name}{end}" for name in ("pytorch_lora_weights", "adapter_model") for end in (".safetensors", ".bin")),
    "model.pt",
    "models/model.pt",
)
"""Files of fine-tuned weights as diffusers, peft and this package's training name them, from a folder."""


def weights_file(path: str | Path) -> Path:
    """The file of fine-tuned weights that ``path`` names: itself, or the first of :data:`WEIGHTS_IN_FOLDERS` in it.

    Raises:
        InputError: if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"weights: there is no file {path}; train first, or give weights=base for the base model's")
    for name in WEIGHTS_IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise InputError(f"weights: the folder {path} holds none of {', '.join(WEIGHTS_IN_FOLDERS)}; give the file itself")


def load_weights(path: str | Path, network: nn.Module) -> None:
    """Put fine-tuned weights into ``network``, in place.

    Args:
        path: what training exports (``model.pt``); a U-Net's file or a folder as diffusers writes them; the U-Net of a
            checkpoint in one file; or low-rank updates of diffusers, peft or kohya, which are added to the weights that
            ``network`` has, once with each call. Of a folder the U-Net alone is taken: a model whose autoencoder or
            text encoder is its own is a base model.
        network: a :class:`nodule_plugin.diffusion.network.DiffusionUNet`.

    Raises:
        InputError: see :func:`fitting_weights`.
    """
    weights = fitting_weights(path, network)
    if isinstance(weights, LowRankUpdates):
        merge_into_unet(weights, network.unet)
    else:
        network.load_state_dict(weights)


def text_encoder_updates(weights: str | Path) -> LowRankUpdates | None:
    """The low-rank updates in fine-tuned weights, some of which may be the text encoder's; None where there are none.

    Raises:
        InputError: if the weights cannot be read.
    """
    if weights == BASE_WEIGHTS:
        return None
    file = weights_file(weights)
    content = read_content(file, "weights")
    refuse_other_kinds("weights", str(file), content)
    return read_updates(file, content) if is_lora(content) else None


def identify_weights(weights: str, network: nn.Module) -> str:
    """SHA-256 of the weights that ``network`` is going to have, after a look at whether they fit.

    Args:
        weights: file or folder, see :func:`load_weights`; "base" for the base model's own, as ``network`` holds them
            now.
        network: that is to load them.

    Returns:
        Of a file with all weights the hash of its bytes, as ``sha256sum`` prints it; of the base model's own the hash
        of names, types, shapes and bytes of the state dict's tensors in alphabetical order; of low-rank updates that
        hash together with the one of their file's bytes.

    Raises:
        InputError: see :func:`fitting_weights`.
    """
    if weights == BASE_WEIGHTS:
        return weights_sha256(network)
    is_update = isinstance(fitting_weights(weights, network), LowRankUpdates)
    digest = file_sha256(weights_file(weights))
    return weights_sha256(network, digest) if is_update else digest


def fitting_weights(path: str | Path, network: nn.Module) -> dict[str, torch.Tensor] | LowRankUpdates:
    """The weights of a file under the names of ``network``, or its low-rank updates, if they fit.

    Args:
        path: see :func:`load_weights`.
        network: that is to load them.

    Raises:
        InputError: if the file is missing, damaged, holds more than tensors, or is of another network or kind.
    """
    file = weights_file(path)
    content = read_content(file, "weights")
    refuse_other_kinds("weights", str(file), content)
    unet: Any = getattr(network, "unet", None)
    if is_lora(content):
        updates = read_updates(file, content, unet.config)
        check_updates(updates, unet)
        return updates
    if unet is not None:
        content = _own_names(content, unet.config)
    expected = network.state_dict()
    for name in sorted(set(expected) | set(content)):
        old, new = (_shape(part.get(name)) for part in (content, expected))
        if old != new:
            kind = unet_kind(content.get("unet.conv_in.weight"))
            raise InputError(
                f"weights: {file} is of another network{kind}: {name} has shape {old}, the base model's {new}"
            )
    return content


def _own_names(content: dict[str, Any], config: Any) -> dict[str, Any]:
    if is_single_file(content):
        content = original_unet_weights(content, config)
    if "conv_in.weight" in content:
        return {f"unet.{name}": value for name, value in content.items()}
    return content


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else "none"
