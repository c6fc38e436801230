"""Stable Diffusion's U-Net with the calling convention of MONAI's diffusion networks."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from nodule_plugin.diffusion.components import load_unet
from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed
from nodule_plugin.settings import as_flag, whole_number

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention's projections, those that Hu et al. adapt and diffusers' training scripts name."""

Network = TypeVar("Network", bound="DiffusionUNet")


class DiffusionUNet(nn.Module):
    """Wraps diffusers' UNet2DConditionModel so that MONAI's engines, inferers and bundle checks can call it.

    Args:
        unet: the network to wrap, trained in place.
    """

    load = staticmethod(load_unet)

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    @classmethod
    def from_base(
        cls: type[Network],
        base_model: str,
        revision: str | None = None,
        variant: str | None = None,
        gradient_checkpointing: bool | str = False,
        channels_last: bool | str = False,
        compile: bool | str = False,
        lora_rank: int | None = None,
        lora_alpha: int | None = None,
    ) -> Network:
        """The U-Net of a base model, see :func:`nodule_plugin.diffusion.components.load_unet`.

        Args:
            base_model, revision, variant: which model.
            gradient_checkpointing: recompute activations in the backward pass (about a third more time, far less
                memory; Chen et al., arXiv:1604.06174).
            channels_last: keep weights in the memory format that tensor cores prefer.
            compile: let torch.compile fuse operations; pays after minutes, on GPUs.
            lora_rank: train low-rank updates of the attention's projections instead of all weights (Hu et al., ICLR
                2022, arXiv:2106.09685); None trains all weights.
            lora_alpha: the update is scaled by ``lora_alpha / lora_rank``; None for ``lora_rank``.

        Raises:
            InputError: if there is no such model, a setting is none, or peft is needed and missing.
        """
        unet = cls.load(base_model, revision, variant)
        if lora_rank is None and lora_alpha is not None:
            raise InputError(
                f"lora_alpha: {lora_alpha} scales low-rank updates, and there are none; give lora_rank, too"
            )
        if lora_rank is not None:
            add_lora(unet, lora_rank, lora_alpha)
        if as_flag("gradient_checkpointing", gradient_checkpointing):
            unet.enable_gradient_checkpointing()
        if as_flag("channels_last", channels_last):
            unet.to(memory_format=torch.channels_last)
        if as_flag("compile", compile):
            unet.compile()
        return cls(unet)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The weights that are trained: all of them, or the low-rank updates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

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


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: int | None = None) -> None:
    """Freeze a U-Net and add trainable low-rank updates, which begin at zero, in place.

    Args:
        unet: changed.
        rank: of the updates, 1 or above.
        alpha: see :meth:`DiffusionUNet.from_base`.

    Raises:
        InputError: if the rank is none, or peft is not installed.
    """
    whole_number("lora_rank", rank)  # null is for all weights
    check_installed("peft", "train")
    from peft import LoraConfig

    unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(LORA_TARGETS))
    unet.add_adapter(config)


def export_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict for ``model.pt``: low-rank updates, where there are any, merged into the weights they update."""
    return merged_copy(network).state_dict() if has_lora(network) else network.state_dict()


def merged_copy(network: nn.Module) -> nn.Module:
    """A copy of the network that takes :func:`export_weights`; low-rank updates are merged in it."""
    merged: Any = copy.deepcopy(network)
    if has_lora(network):
        merged.unet.fuse_lora()
        merged.unet.unload_lora()
    return cast(nn.Module, merged)


def has_lora(network: nn.Module) -> bool:
    """Whether low-rank updates of it are trained."""
    return any(".lora_A." in name for name, _ in network.named_parameters())
