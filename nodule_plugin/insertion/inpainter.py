"""A nodule painted into a block of a patient's CT, in Hounsfield units."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from nodule_plugin.data.window import hu_to_unit, unit_to_hu
from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    weights_fingerprint,
)
from nodule_plugin.diffusion.fine_tuned import load_weights
from nodule_plugin.diffusion.sampling import GuidedSampler, seeded_noise
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.grid import Grid, read_grid
from nodule_plugin.insertion.network import Conditions, InpaintingUNet, conditions, load_autoencoder, slices_of
from nodule_plugin.insertion.region import MARGIN_MM, painted_region
from nodule_plugin.insertion.sources import Asked

SCHEDULER = "DDIMScheduler"
"""Of first order: with few steps it keeps what the network is sure of; others made large nodules mottled."""


class NoduleInpainter:
    """Paints a nodule on a model's grid.

    The model sees the host in the slices that the nodule touches, which is what a crop shows it in training, and paints
    the nodule and :data:`~nodule_plugin.insertion.region.MARGIN_MM` around it. At every step of the sampling all else
    is the host with that step's noise (Lugmayr et al., "RePaint", CVPR 2022, section 4.1), and in the end the host.

    Args:
        network, vae, conditioner, noise_scheduler: of the model, on one device.
        grid: that it was trained on; of a network of one slice its depth is how many are painted one by one, with the
            same noise.
        model: ``name``, ``hash`` and ``revision``, for manifests and DICOM.

    Raises:
        InputError: if the grid's depth is no multiple of the slices that the network takes.
    """

    def __init__(
        self,
        network: InpaintingUNet,
        vae: Any,
        conditioner: TextConditioner,
        noise_scheduler: DDPMScheduler,
        grid: Grid,
        model: dict[str, Any],
    ) -> None:
        self.network, self.vae, self.conditioner, self.noise_scheduler = network, vae, conditioner, noise_scheduler
        self.grid, self.model = grid, model
        self.slices = slices_of(network.unet.config)
        if grid.shape[0] % self.slices:
            raise InputError(f"grid_shape: {grid.shape[0]} slices, and the network takes {self.slices} at once")

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        weights: str | Path | None = None,
        depth: int | None = None,
    ) -> NoduleInpainter:
        """A model in diffusers' layout with a ``grid.json``.

        Args:
            folder: of the model.
            device: where it runs.
            weights: the ``model.pt`` of a training, whose record (``model.json``) then gives the grid.
            depth: slices of the grid, in the place of those that it was trained on.

        Raises:
            InputError: if a part is missing, damaged or of another kind of model.
        """
        folder = Path(folder)
        grid = read_grid(folder / "grid.json" if weights is None else Path(weights).with_suffix(".json"))
        if depth is not None:
            grid = dataclasses.replace(grid, shape=(depth, *grid.shape[1:]))
        base = str(folder)
        network = InpaintingUNet.from_base(base).requires_grad_(False).eval()
        if weights is not None:
            load_weights(str(weights), network)
        encoder = load_text_encoder(base).to(device)
        return cls(
            network.to(device),
            load_autoencoder(base).to(device),
            TextConditioner(load_tokenizer(base), encoder),
            load_noise_scheduler(base),
            grid,
            {"name": folder.name, "hash": weights_fingerprint(network.unet), "revision": None},
        )

    def __call__(self, host_hu: Tensor, mask: Tensor, asked: Asked) -> Tensor:
        """Paint a nodule.

        Args:
            host_hu: (D, H, W) float, Hounsfield units on the model's grid.
            mask: (D, H, W) 0 to 1, the fraction of each voxel that is to be nodule.
            asked: which nodule.

        Returns:
            (D, H, W) float32 Hounsfield units on the CPU; what is not painted is ``host_hu``.

        Raises:
            InputError: if a shape is not the grid's, a value is not finite, the mask is empty, or a setting makes no
                sense.
        """
        for name, volume in (("host_hu", host_hu), ("mask", mask)):
            if tuple(volume.shape) != self.grid.shape:
                raise InputError(f"{name}: the model's grid {self.grid.shape} is needed, not {tuple(volume.shape)}")
            if not torch.isfinite(volume).all():
                raise InputError(f"{name}: there are values that are not finite; Hounsfield units are needed")
        nodule = mask.cpu().float().numpy()
        region = painted_region(nodule, self.grid.spacing_mm, MARGIN_MM)
        if not region.any():
            raise InputError("mask: no voxel holds nodule; give a larger one")
        host = host_hu.cpu().float().numpy()
        known = np.broadcast_to(np.asarray(region.any((1, 2)))[:, None, None], region.shape)
        volumes = (hu_to_unit(host, self.grid.window_hu), nodule, region, known)
        painted = host.copy()
        for first in range(0, len(region), self.slices):
            part = slice(first, first + self.slices)
            if region[part].any():
                told = self._told(*(torch.from_numpy(np.ascontiguousarray(volume[part])) for volume in volumes))
                unit = self._paint(told, asked)
                painted[part] = np.where(region[part], unit_to_hu(unit, self.grid.window_hu), host[part])
        return torch.from_numpy(painted)

    def _told(self, *volumes: Tensor) -> Conditions:
        device = next(self.network.parameters()).device
        return conditions(self.vae, *(volume[None].to(device) for volume in volumes))

    def _paint(self, told: Conditions, asked: Asked) -> np.ndarray:
        """(S, H, W) in [-1, 1]."""
        noise = seeded_noise([asked.seed], told.latents.shape[1:]).to(told.latents.device)
        sampler = GuidedSampler(self.noise_scheduler, self.vae, asked.steps, SCHEDULER)

        def network(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
            count = len(latents)  # two with guidance, the same but for their context
            host = self.noise_scheduler.add_noise(told.latents, noise, timesteps[:1].long())
            noisy = torch.where(told.painted > 0, latents[:1], host)
            size = torch.full((count,), float(asked.diameter_mm), device=latents.device)
            return self.network(told.channels(noisy).expand(count, -1, -1, -1), timesteps, context, size)

        # One that forgets: the model's own remembers every prompt, and a page that is served meets too many.
        conditioner = TextConditioner(self.conditioner.tokenizer, self.conditioner.text_encoder)
        images = sampler(
            noise,
            network,
            context=conditioner([asked.prompt]),
            unconditional=conditioner([""]),
            guidance_scale=asked.guidance_scale,
            seeds=[asked.seed],
        )
        slices = images if images.shape[1] == self.slices else images.mean(1, keepdim=True)
        return (slices + told.sketch)[0].cpu().numpy()
