"""The denoising loss of given images under fixed noise: how well a model knows each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn

from nodule_plugin.data.order import sample_seed
from nodule_plugin.diffusion.encoding import LatentEncoder, draw_latents
from nodule_plugin.diffusion.sampling import precision_dtype, seeded_noise
from nodule_plugin.diffusion.training import denoising_target, squared_errors


def encoded_views(images: Sequence[Tensor], vae: AutoencoderKL, views: int, seed: int = 0) -> Tensor:
    """Latents of images as they are, drawn from the autoencoder's distribution.

    They are not turned: a model that was overfitted to images upright knows nothing of them turned.

    Args:
        images: N of (3, H, W) in [-1, 1].
        vae: frozen.
        views: D of each image.
        seed: of the draws; view d of every image is drawn with the same noise.

    Returns:
        (N, D, C, h, w) on the CPU.
    """
    encode = LatentEncoder(vae)
    moments = torch.cat(
        [encode({"moments": [None], "index": [0], "orientation": [0], "image": [image]}).cpu() for image in images]
    )
    channels, *size = moments.shape[1:]
    noise = seeded_noise([sample_seed(seed, view) for view in range(views)], (channels // 2, *size))
    return torch.stack([draw_latents(vae, each.expand(views, -1, -1, -1), noise) for each in moments])


@torch.no_grad()
def denoising_losses(
    network: nn.Module,
    scheduler: DDPMScheduler,
    conditioner: Callable[[list[str]], Tensor],
    latents: Tensor,
    prompts: Sequence[str],
    timesteps: Sequence[int],
    seed: int = 0,
    batch_size: int = 32,
    precision: str = "float32",
) -> np.ndarray:
    """Mean squared error of a network's predictions for images that noise was added to, each with its own prompt.

    The noise belongs to a view and a timestep and is the same for every image and every network, so that what differs
    between two losses is not the noise.

    Args:
        network: see :class:`nodule_plugin.diffusion.network.DiffusionUNet`.
        scheduler: the base model's noise schedule and prediction type.
        conditioner: ``conditioner(list of B prompts) -> (B, L, W)``.
        latents: (N, D, C, h, w), see :func:`encoded_views`.
        prompts: N.
        timesteps: T, from 0 (no noise) to below the schedule's number of steps.
        seed: of the noise.
        batch_size: samples in one forward pass.
        precision: of the forward pass, see :data:`nodule_plugin.diffusion.sampling.PRECISIONS`.

    Returns:
        (N, T) means over the D views, above 0.
    """
    count, views = latents.shape[:2]
    device, dtype = next(network.parameters()).device, precision_dtype(precision)
    pairs = [(image, view) for image in range(count) for view in range(views)]
    losses = np.empty((count, views, len(timesteps)))
    network.eval()
    for column, timestep in enumerate(timesteps):
        noises = seeded_noise([sample_seed(seed, timestep, view) for view in range(views)], latents.shape[2:])
        for start in range(0, len(pairs), batch_size):
            images, drawn = map(list, zip(*pairs[start : start + batch_size]))
            clean, noise = latents[images, drawn].to(device), noises[drawn].to(device)
            times = torch.full((len(images),), timestep, device=device)
            noisy = scheduler.add_noise(clean, noise, times)
            context = conditioner([prompts[image] for image in images]).to(device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                prediction = network(noisy, timesteps=times, context=context)
            errors = squared_errors(prediction, denoising_target(scheduler, clean, noise, times))
            losses[images, drawn, column] = errors.cpu().numpy()
    return losses.mean(axis=1)
