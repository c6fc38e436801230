"""Training of an inpainting model: what goes into a step, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler
from monai.engines.utils import PrepareBatch
from torch import Tensor, nn

from nodule_plugin.data.order import sample_seed, seeded_generator
from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.training import check_denoising, denoising_target, min_snr_weights
from nodule_plugin.insertion.network import conditions


class InpaintingTarget(NamedTuple):
    """What a network is to predict.

    Attributes:
        value: (B, C, h, w) noise, velocity or latents.
        painted: (B, C, h, w) 1 where it counts, 0 elsewhere.
        weight: (B,) of each sample's loss.
    """

    value: Tensor
    painted: Tensor
    weight: Tensor


class InpaintingLoss(nn.Module):
    """Mean squared error of each sample where it is painted, times its weight, added up; in float32.

    What is known, and what lies beyond a crop, does not count: sampling puts the host there at every step.
    """

    def forward(self, prediction: Tensor, target: InpaintingTarget) -> Tensor:
        """A scalar; the mean over the batch where the weights are one over its size."""
        squared = (prediction.float() - target.value.float()).square() * target.painted
        means = squared.flatten(1).sum(1) / target.painted.flatten(1).sum(1).clamp(min=1)
        return (means * target.weight).sum()


class InpaintingPrepareBatch(PrepareBatch):
    """From a batch of samples (:class:`nodule_plugin.insertion.items.GridDataset`) to one step of denoising.

    Everything random about a sample comes from its own seed, see :mod:`nodule_plugin.data.order`.

    Args:
        vae: frozen autoencoder.
        conditioner: frozen text encoder.
        noise_scheduler: the base model's noise schedule and prediction type.
        caption_dropout: fraction of the prompts that are replaced by the empty prompt, for classifier-free guidance.
        snr_gamma: see :func:`nodule_plugin.diffusion.training.min_snr_weights`; None weights all timesteps alike.

    Raises:
        InputError: if a setting is out of its range.
    """

    def __init__(
        self,
        vae: Any,
        conditioner: TextConditioner,
        noise_scheduler: DDPMScheduler,
        caption_dropout: float = 0.0,
        snr_gamma: float | None = None,
    ) -> None:
        check_denoising(caption_dropout, snr_gamma)
        self.vae = vae
        self.conditioner = conditioner
        self.noise_scheduler = noise_scheduler
        self.caption_dropout = caption_dropout
        self.snr_gamma = snr_gamma

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, InpaintingTarget, tuple, dict[str, Tensor]]:
        """(the network's input, target, (), {timesteps, context, diameter_mm}) of a batch of samples."""
        volumes = (torch.stack(batchdata[name]).to(device) for name in ("image", "nodule", "region", "known"))
        told = conditions(self.vae, *volumes)
        draws = [self._draw(seed, told.latents.shape[1:]) for seed in batchdata["seed"]]
        noise, timesteps = (torch.stack(drawn).to(device) for drawn in list(zip(*draws))[:2])
        prompts = ["" if draw[2] else prompt for prompt, draw in zip(batchdata["prompt"], draws)]
        weight = torch.tensor(batchdata["weight"], dtype=torch.float32, device=device)
        if self.snr_gamma is not None:
            weight = weight * min_snr_weights(self.noise_scheduler, timesteps, self.snr_gamma)
        value = denoising_target(self.noise_scheduler, told.latents, noise, timesteps)
        noisy = self.noise_scheduler.add_noise(told.latents, noise, timesteps)
        condition = {
            "timesteps": timesteps,
            "context": self.conditioner(prompts).to(device),
            "diameter_mm": torch.tensor(batchdata["diameter_mm"], dtype=torch.float32, device=device),
        }
        return told.channels(noisy), InpaintingTarget(value, told.painted, weight), (), condition

    def _draw(self, seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, bool]:
        """The noise, the timestep and whether the prompt is dropped."""
        # The sample's seed itself has drawn its place and orientation: what follows must not depend on that.
        generator = seeded_generator(sample_seed(seed, 1))
        noise = torch.randn(shape, generator=generator)
        timestep = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (), generator=generator)
        return noise, timestep, float(torch.rand((), generator=generator)) < self.caption_dropout


def count_samples(target: InpaintingTarget) -> int:
    """How many samples a batch has, for Ignite's metrics."""
    return len(target.weight)
