"""Fine-tuning of a latent diffusion model: what goes into a step, its loss, and what validation generates from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from monai.engines.utils import PrepareBatch
from torch import Tensor, nn

from nodule_plugin.data.latents import LatentCache
from nodule_plugin.data.order import sample_seed, seeded_generator
from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.encoding import LatentEncoder, draw_latents
from nodule_plugin.diffusion.sampling import GenerationPrepareBatch
from nodule_plugin.errors import InputError


class DenoisingTarget(NamedTuple):
    """What a network is to predict.

    Attributes:
        value: (B, C, h, w) noise, velocity or latents.
        weight: (B,) of each sample's loss.
    """

    value: Tensor
    weight: Tensor


class DenoisingLoss(nn.Module):
    """Mean squared error of each sample, times its weight, added up; in float32 whatever the prediction's precision."""

    def forward(self, prediction: Tensor, target: DenoisingTarget) -> Tensor:
        """A scalar; the mean over the batch where the weights are one over its size."""
        return (squared_errors(prediction, target.value) * target.weight).sum()


def squared_errors(prediction: Tensor, value: Tensor) -> Tensor:
    """Mean squared error of each sample, (B,) float32."""
    return (prediction.float() - value.float()).square().flatten(1).mean(1)


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


def min_snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights that keep steps of little noise from ruling the loss (Hang et al., ICCV 2023, arXiv:2303.09556).

    With the signal-to-noise ratio SNR of a step, the loss of predicted latents is weighted by min(SNR, gamma). The
    loss of predicted noise is that of predicted latents times SNR, that of predicted velocity times SNR + 1, so their
    weights are divided by these. Where SNR is 0 (zero terminal SNR), noise has no defined weight and takes 1.

    Args:
        scheduler: its betas and prediction type.
        timesteps: (B,) int64.
        gamma: 5 in the paper.

    Returns:
        (B,) float32, at most 1 for noise and velocity.
    """
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    ratio = kept / (1 - kept)
    weights = ratio.clamp(max=gamma)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return torch.where(ratio > 0, weights / ratio, 1.0)
    return weights / (ratio + 1) if kind == "v_prediction" else weights


def check_denoising(caption_dropout: float, snr_gamma: float | None) -> None:
    """Check what every training by denoising is told.

    Raises:
        InputError: if a setting is out of its range.
    """
    if not 0 <= caption_dropout <= 1:
        raise InputError(f"caption_dropout: a fraction from 0 to 1 is needed, not {caption_dropout}")
    if snr_gamma is not None and snr_gamma <= 0:
        raise InputError(f"snr_gamma: a number above 0, or null for none, is needed, not {snr_gamma}")


class DenoisingPrepareBatch(PrepareBatch):
    """From a batch of samples to one step of denoising: noisy latents, what to predict, and the conditions.

    Everything random about a sample comes from its own seed, see :mod:`nodule_plugin.data.order`.

    Args:
        vae: frozen autoencoder.
        conditioner: frozen text encoder.
        noise_scheduler: the base model's noise schedule and prediction type.
        cache: of the samples' latent distributions; None encodes them at every step.
        caption_dropout: fraction of the prompts that are replaced by the empty prompt, which teaches the unconditional
            prediction that classifier-free guidance needs (Ho and Salimans, arXiv:2207.12598, section 3.1).
        noise_offset: standard deviation of noise added to whole channels, which lets a model learn an image's mean
            brightness (Guttenberg, "Diffusion with offset noise", 2023).
        snr_gamma: see :func:`min_snr_weights`; None weights all timesteps alike.

    Raises:
        InputError: if a setting is out of its range.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        conditioner: TextConditioner,
        noise_scheduler: DDPMScheduler,
        cache: LatentCache | None = None,
        caption_dropout: float = 0.0,
        noise_offset: float = 0.0,
        snr_gamma: float | None = None,
    ) -> None:
        check_denoising(caption_dropout, snr_gamma)
        if noise_offset < 0:
            raise InputError(f"noise_offset: a number of 0 or above is needed, not {noise_offset}")
        self.encoder = LatentEncoder(vae, cache)
        self.conditioner = conditioner
        self.noise_scheduler = noise_scheduler
        self.caption_dropout = caption_dropout
        self.noise_offset = noise_offset
        self.snr_gamma = snr_gamma

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, DenoisingTarget, tuple, dict[str, Tensor]]:
        """(noisy latents, target, (), {timesteps, context}) of a batch of samples."""
        moments = self.encoder(batchdata, device)
        channels, *size = moments.shape[1:]
        draws = [self._draw(seed, (channels // 2, *size)) for seed in batchdata["seed"]]
        posterior, noise, timesteps = (torch.stack(drawn).to(moments.device) for drawn in list(zip(*draws))[:3])
        prompts = ["" if draw[3] else prompt for prompt, draw in zip(batchdata["prompt"], draws)]
        latents = draw_latents(self.encoder.vae, moments, posterior)
        weight = torch.tensor(batchdata["weight"], dtype=torch.float32, device=moments.device)
        if self.snr_gamma is not None:
            weight = weight * min_snr_weights(self.noise_scheduler, timesteps, self.snr_gamma)
        target = DenoisingTarget(denoising_target(self.noise_scheduler, latents, noise, timesteps), weight)
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        return noisy, target, (), {"timesteps": timesteps, "context": self.conditioner(prompts).to(moments.device)}

    def _draw(self, seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, bool]:
        """The autoencoder's noise, the diffusion's noise, the timestep and whether the prompt is dropped."""
        # The sample's seed itself has drawn its orientation: the numbers that follow must not depend on that.
        generator = seeded_generator(sample_seed(seed, 1))
        posterior = torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        offset = torch.randn((shape[0], 1, 1), generator=generator)
        steps = self.noise_scheduler.config.num_train_timesteps
        timestep = torch.randint(0, steps, (), generator=generator)
        dropped = float(torch.rand((), generator=generator)) < self.caption_dropout
        return posterior, noise + self.noise_offset * offset, timestep, dropped


class ValidationPrepareBatch(PrepareBatch):
    """From held-out images and prompts to what :class:`nodule_plugin.diffusion.sampling.GuidedSampler` takes.

    The noise of an item is seeded by its id, so that every validation starts from the same noise.

    Args:
        conditioner, vae, image_size: see :class:`nodule_plugin.diffusion.sampling.GenerationPrepareBatch`.
        guidance_scale: of all validation images.
    """

    def __init__(self, conditioner: TextConditioner, vae: Any, image_size: int, guidance_scale: float) -> None:
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
