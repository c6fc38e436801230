"""Images as the networks behind the metrics were given them: 8 bits deep, red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from nodule_plugin.errors import InputError

Images = Tensor | Sequence[Image.Image]
"""A (B, 3, H, W) tensor in [-1, 1], or pictures."""


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) images in [-1, 1] as (B, 3, H, W) uint8, rounded.

    Generated images are stored with 8 bits; rounding the real ones too keeps a network from telling them by that.

    Raises:
        InputError: if the shape is another or a value is not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images: a tensor of shape (images, 3, rows, columns) is needed, not {tuple(images.shape)}")
    if not torch.isfinite(images).all():
        raise InputError("images: there are values that are not finite; values from -1 to 1 are needed")
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_pictures(images: Images) -> list[Image.Image]:
    """Images as RGB pictures; see :func:`to_uint8`."""
    if isinstance(images, Tensor):
        return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in to_uint8(images.detach().cpu())]
    return [picture.convert("RGB") for picture in images]
