"""Images as the networks behind the metrics were given them: 8 bits deep, red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from nodule_plugin.errors import InputError

Images = Tensor | Sequence[Image.Image]
"""A (B, 3, H, W) tensor in [-1, 1], or pictures."""
LARGEST = 2.0
"""Absolute value that an overshoot stays below; above it lie Hounsfield units and grey values of 8 bits."""


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) images in [-1, 1] as (B, 3, H, W) uint8, rounded.

    Generated images are stored with 8 bits; rounding the real ones too keeps a network from telling them by that.

    Raises:
        InputError: if it is another kind of array, its shape is another, or a value is not finite or is on another
            scale; what a little overshoots is cut off.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = getattr(images, "dtype", None) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images: a tensor of floats from -1 to 1, or a list of pictures, is needed, not {kind}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images: a tensor of shape (images, 3, rows, columns) is needed, not {tuple(images.shape)}")
    if not torch.isfinite(images).all():
        raise InputError("images: there are values that are not finite; values from -1 to 1 are needed")
    if images.numel() and (largest := float(images.abs().max())) > LARGEST:
        raise InputError(f"images: values from -1 to 1 are needed, not {largest:g}; divide by 127.5 and subtract 1")
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_pictures(images: Images) -> list[Image.Image]:
    """Images as RGB pictures; see :func:`to_uint8`."""
    if isinstance(images, Sequence):
        return [picture.convert("RGB") for picture in images]
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in to_uint8(images).detach().cpu()]
