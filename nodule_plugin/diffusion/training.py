"""Fine-tuning of a latent diffusion model: what goes into a training step and what validation generates from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from monai.engines.utils import PrepareBatch
from torch import Tensor

from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.sampling import GenerationPrepareBatch
from nodule_plugin.errors import InputError


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Draw scaled latents of images from the autoencoder's posterior.

    Args:
        vae: its configuration gives the scaling (and, where it has one, the shift).
        images: (B, 3, H, W) in [-1, 1].

    Returns:
        (B, latent channels, H / f, W / f), about unit variance.
    """
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (vae.encode(images).latent_dist.sample() - shift) * vae.config.scaling_factor


def denoising_target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network has to predict, by the base model's own prediction type.

    ``epsilon`` is the noise (Ho et al., NeurIPS 2020), ``v_prediction`` the velocity (Salimans and Ho, ICLR 2022,
    appendix D), ``sample`` the latents.

    Raises:
        InputError: if the scheduler's configuration names another type.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise InputError(f"scheduler_config.json: prediction_type {kind!r} is not epsilon, v_prediction or sample")


class DenoisingPrepareBatch(PrepareBatch):
    """From images and prompts to one step of denoising: noisy latents, what to predict, and the conditions.

    Args:
        vae: frozen autoencoder.
        conditioner: frozen text encoder.
        noise_scheduler: the base model's noise schedule and prediction type.
        caption_dropout: share of the prompts that are replaced by the empty prompt, which teaches the unconditional
            prediction that classifier-free guidance needs (Ho and Salimans, arXiv:2207.12598, section 3.1).

    Raises:
        InputError: if ``caption_dropout`` is not a share.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        conditioner: TextConditioner,
        noise_scheduler: DDPMScheduler,
        caption_dropout: float = 0.1,
    ) -> None:
        if not 0 <= caption_dropout <= 1:
            raise InputError(f"caption_dropout: a share from 0 to 1 is needed, not {caption_dropout}")
        self.vae = vae
        self.conditioner = conditioner
        self.noise_scheduler = noise_scheduler
        self.caption_dropout = caption_dropout

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
        """(noisy latents, target, (), {timesteps, context}) of a batch with ``image`` and ``prompt``."""
        images = torch.as_tensor(batchdata["image"]).to(device=device, non_blocking=non_blocking, **kwargs)
        latents = encode_images(self.vae, images)
        noise = torch.randn_like(latents)
        steps = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=latents.device)
        dropped = torch.rand(len(latents)) < self.caption_dropout
        prompts = ["" if drop else prompt for prompt, drop in zip(batchdata["prompt"], dropped)]
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        target = denoising_target(self.noise_scheduler, latents, noise, timesteps)
        context = self.conditioner(prompts).to(latents.device)
        return noisy, target, (), {"timesteps": timesteps, "context": context}


class ValidationPrepareBatch(PrepareBatch):
    """From held-out images and prompts to what :class:`nodule_plugin.diffusion.sampling.GuidedSampler` takes.

    The noise of an item is seeded by its id, so that every validation starts from the same noise.

    Args:
        conditioner, vae, image_size: see :class:`nodule_plugin.diffusion.sampling.GenerationPrepareBatch`.
        guidance_scale: of all validation images.
    """

    def __init__(
        self, conditioner: TextConditioner, vae: AutoencoderKL, image_size: int, guidance_scale: float
    ) -> None:
        self.prepare = GenerationPrepareBatch(conditioner, vae, image_size)
        self.guidance_scale = guidance_scale

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Any, tuple, dict[str, Any]]:
        """(noise, real images, (), conditions) of a batch with ``image``, ``prompt`` and ``id``."""
        requests = [
            {"prompt": prompt, "guidance_scale": self.guidance_scale, "seed": zlib.crc32(name.encode())}
            for prompt, name in zip(batchdata["prompt"], batchdata["id"])
        ]
        noise, _, _, conditions = self.prepare(requests, device, non_blocking, **kwargs)
        images = torch.as_tensor(batchdata["image"]).to(device=device, non_blocking=non_blocking, **kwargs)
        return noise, images, (), conditions
