"""Where an autoencoder's latents lie: their shape and their scale, as its own configuration says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nodule_plugin.errors import InputError


def pixels_per_latent(vae: Any) -> int:
    """How many pixels a side of a latent's element covers."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def latent_shape(vae: Any, image_size: int) -> tuple[int, int, int]:
    """Channels, rows and columns of the latents of square images.

    Raises:
        InputError: if the autoencoder cannot make images of that size.
    """
    factor = pixels_per_latent(vae)
    if not isinstance(image_size, int) or image_size < factor or image_size % factor:
        raise InputError(f"image_size: a multiple of {factor} is needed for this base model, not {image_size!r}")
    return vae.config.latent_channels, image_size // factor, image_size // factor


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the autoencoder gives them -> as the U-Net knows them, about unit variance."""
    return (latents - _shift(vae)) * vae.config.scaling_factor


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`scaled`."""
    return latents / vae.config.scaling_factor + _shift(vae)


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
