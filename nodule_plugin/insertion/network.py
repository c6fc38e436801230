"""The networks of an inpainting model: Stable Diffusion's inpainting form, for one slice or several at once.

Stable Diffusion's own (nine channels: four noisy latents, the mask, four latents of what is known) sees one slice at a
time. A small network takes several slices as its channels, so that what it paints is one nodule through all of them;
it needs no autoencoder, because at a scanner's own pixels nothing can be left out: its base model's ``vae`` is a
:class:`PixelAutoencoder`. How many slices a network takes follows from its channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle

from nodule_plugin.diffusion.components import freeze, load_vae
from nodule_plugin.diffusion.diffusers_layout import load_network, load_part
from nodule_plugin.diffusion.latent_space import scaled
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.sketch import sketch_nodule

PATCH = 2
"""Pixels along each side of what a :class:`PixelAutoencoder` makes one position: half the side, a third of the work."""


def slices_of(config: Any) -> int:
    """How many slices an inpainting U-Net takes at once: channels beyond its noisy and its known latents are masks."""
    return int(config["in_channels"]) - 2 * int(config["out_channels"])


def load_inpainting_unet(base_model: str, revision: str | None = None, variant: str | None = None) -> Any:
    """The denoising U-Net of an inpainting model in diffusers' layout, in float32.

    Args:
        base_model, revision, variant: see :func:`nodule_plugin.diffusion.components.load_unet`.

    Raises:
        InputError: if there is no such model, or its channels are not those of an inpainting model.
    """
    config = load_part(UNet2DConditionModel.load_config, base_model, "unet", revision)
    if slices_of(config) < 1:
        raise InputError(
            f"base_model: the unet of {base_model!r} has {config['in_channels']} input channels for"
            f" {config['out_channels']} of output; give an inpainting model (Stable Diffusion's has 9 for 4)"
        )
    return load_network(UNet2DConditionModel, base_model, "unet", revision, variant)


def load_autoencoder(base_model: str, revision: str | None = None, variant: str | None = None) -> Any:
    """The autoencoder of an inpainting model, frozen: Stable Diffusion's, or a :class:`PixelAutoencoder`."""
    config = load_part(AutoencoderKL.load_config, base_model, "vae", revision)
    if config.get("_class_name") == PixelAutoencoder.__name__:
        return freeze(PixelAutoencoder.from_config(config))
    return load_vae(base_model, revision, variant)


class InpaintingUNet(DiffusionUNet):
    """An inpainting U-Net of diffusers with the calling convention of MONAI's diffusion networks."""

    load = staticmethod(load_inpainting_unet)

    def forward(
        self,
        image: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        diameter_mm: Tensor | None = None,
    ) -> Tensor:
        """Predict noise, velocity or sample of the noisy latents.

        Args:
            image: (B, 2 C + S, h, w): C channels of noisy latents, S masks, C channels of known latents.
            timesteps, context: see :class:`nodule_plugin.diffusion.network.DiffusionUNet`.
            diameter_mm: (B,) of the nodules, for networks with a further embedding
                (``class_embed_type="timestep"``); others know it from the masks, and from the prompt if it says so.
                None is 0.

        Returns:
            (B, C, h, w).
        """
        if timesteps is None:
            timesteps = torch.zeros(len(image), dtype=torch.long, device=image.device)
        if context is None:
            context = image.new_zeros(len(image), 1, self.unet.config.cross_attention_dim)
        if diameter_mm is None:
            diameter_mm = torch.zeros(len(image), device=image.device)
        sized = {"class_labels": diameter_mm} if self.unet.config.class_embed_type == "timestep" else {}
        return self.unet(image, timesteps, encoder_hidden_states=context, return_dict=False, **sized)[0]


class PixelAutoencoder(ModelMixin, ConfigMixin):
    """An autoencoder that loses nothing: 2 x 2 pixels of a slice become four channels; diffusers' interface.

    Args:
        slices: how many it takes at once.
        shift_factor, scaling_factor: latents are (pixels - shift) times scaling, about standard normal.
        sketch: what a nodule is sketched with, in [-1, 1]; what is painted is then the difference from the sketch
            (:mod:`nodule_plugin.insertion.sketch`). None: the image itself.
    """

    @register_to_config
    def __init__(
        self, slices: int, shift_factor: float = 0.0, scaling_factor: float = 1.0, sketch: float | None = None
    ) -> None:
        super().__init__()

    def encode(self, images: Tensor) -> Any:
        """The latents' distribution, which has no width, of (B, S, H, W) images."""
        latents = pixel_unshuffle(images, PATCH)
        moments = torch.cat([latents, torch.zeros_like(latents)], 1)
        return _Encoded(DiagonalGaussianDistribution(moments, deterministic=True))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """(B, S, H, W) images of latents."""
        return (pixel_shuffle(latents, PATCH),)


class _Encoded(NamedTuple):
    latent_dist: DiagonalGaussianDistribution


@torch.no_grad()
def encode_slices(vae: Any, slices: Tensor) -> Tensor:
    """Latents of slices, scaled as the base model's own configuration says.

    Args:
        vae: of one slice as a grey picture (diffusers' AutoencoderKL), or of all of them.
        slices: (B, S, H, W) in [-1, 1].

    Returns:
        (B, C, h, w), the means of their distributions.
    """
    images = slices.expand(-1, 3, -1, -1) if isinstance(vae, AutoencoderKL) else slices
    return scaled(vae, vae.encode(images).latent_dist.mode())


class Conditions(NamedTuple):
    """What an inpainting network is told, and where it paints.

    Attributes:
        latents: (B, C, h, w) of the slices less their sketch, without noise.
        mask: (B, S, h, w): 0 known, 0.5 to be painted or unknown, up to 1 nodule.
        known: (B, C, h, w) latents of the slices, with the sketch (or 0, in [-1, 1]) where they are to be painted, and
            0 where unknown.
        painted: (B, C, h, w) 1 where the network paints, 0 elsewhere.
        sketch: (B, S, H, W) what is to be added to decoded latents; 0 everywhere for models without a sketch.
    """

    latents: Tensor
    mask: Tensor
    known: Tensor
    painted: Tensor
    sketch: Tensor

    def channels(self, noisy: Tensor) -> Tensor:
        """The network's input, (B, 2 C + S, h, w), of noisy latents (B, C, h, w)."""
        return torch.cat([noisy, self.mask, self.known], 1)


def conditions(vae: Any, image: Tensor, nodule: Tensor, region: Tensor, known: Tensor) -> Conditions:
    """What a network is told of slices.

    Args:
        vae: see :func:`encode_slices`.
        image: (B, S, H, W) in [-1, 1].
        nodule: (B, S, H, W) 0 to 1, the nodule's mask.
        region: (B, S, H, W) bool, to be painted.
        known: (B, S, H, W) bool, where there is an image.
    """
    given = image * (known & ~region)
    inside = getattr(vae.config, "sketch", None)
    sketch = torch.zeros_like(given) if inside is None else sketch_nodule(given, nodule, region & known, known, inside)
    latents = encode_slices(vae, image * known - sketch)
    size = latents.shape[-2:]
    mask = 0.5 * (region | ~known) + 0.5 * nodule
    painted = (interpolate((region & known).float(), size, mode="area") > 0).float()
    return Conditions(
        latents,
        interpolate(mask.float(), size, mode="area"),
        encode_slices(vae, given if inside is None else sketch),
        painted.repeat_interleave(latents.shape[1] // painted.shape[1], 1),
        sketch,
    )
