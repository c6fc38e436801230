"""Stable Diffusion's U-Net with the calling convention of MONAI's diffusion networks."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from nodule_plugin.diffusion.components import load_unet


class DiffusionUNet(nn.Module):
    """Wraps diffusers' UNet2DConditionModel so that MONAI's engines, inferers and bundle checks can call it.

    Args:
        unet: the network to wrap, trained in place.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    @classmethod
    def from_base(
        cls,
        base_model: str,
        revision: str | None = None,
        variant: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> DiffusionUNet:
        """The U-Net of a base model, see :func:`nodule_plugin.diffusion.components.load_unet`.

        Args:
            gradient_checkpointing: recompute activations in the backward pass (about a third more time, far less
                memory).
        """
        unet = load_unet(base_model, revision, variant)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return cls(unet)

    def forward(
        self, image: torch.Tensor, timesteps: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict noise, velocity or sample, whichever the base model was trained for.

        Args:
            image: (B, latent channels, H, W) noisy latents.
            timesteps: (B,) or scalar; None means 0.
            context: (B, tokens, width) text embeddings; None means zeros, which suits shape checks only: the
                unconditional prediction takes the embeddings of the empty prompt.

        Returns:
            Tensor of the shape of ``image``.
        """
        if timesteps is None:
            timesteps = torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
        if context is None:
            context = image.new_zeros(image.shape[0], 1, self.unet.config.cross_attention_dim)
        return self.unet(image, timesteps, encoder_hidden_states=context, return_dict=False)[0]
