"""From an image back to the noise that a model would have made it from."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS
from nodule_plugin.diffusion.latent_space import pixels_per_latent, scaled
from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.errors import InputError

_STEPS, _FIRST = 6, 0.15
"""Steps of the way back, and the fraction of all timesteps at which an image is taken to be: one without any noise in
it is nothing that a network has learnt from, and smooth images then come back wrong."""


class Inversion:
    """The deterministic sampler run backwards with the empty prompt (DDIM inversion: Song et al., ICLR 2021).

    Neither the prompt nor the guidance scale of an image is known to who looks at it, nor needed: coarse noise comes
    back all the same (measured at guidance 1.5 and 3, docs/provenance.md).

    Args:
        source: the model.
        device: that it runs on.

    Raises:
        InputError: see :func:`nodule_plugin.diffusion.model.load_model`.
    """

    def __init__(self, source: Source, device: str | torch.device = "cpu") -> None:
        model = load_model(source)
        self.image_size = model.image_size
        self.pixels_per_latent = pixels_per_latent(model.vae)
        self.device = torch.device(device)
        self.network, self._vae = model.network.to(device), model.vae.to(device)
        self._kind, self._kept = model.scheduler.config.prediction_type, model.scheduler.alphas_cumprod.to(device)
        last = len(self._kept) - 1
        self._timesteps = [round(_FIRST * last), *(round(last * step / _STEPS) for step in range(1, _STEPS + 1))]
        conditioner = TextConditioner(model.tokenizer, model.text_encoder)
        with torch.no_grad():
            self._empty = conditioner([""]).to(device)
        self._multiple = self.pixels_per_latent * 2 ** (len(model.network.unet.config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Invert.

        Args:
            images: (B, 1, H, W) in [-1, 1], of any size; the scale of the pixels is the model's own.

        Returns:
            (B, C, h, w) noise on the CPU.
        """
        latents = self.latents_of(images)
        context = self._empty.expand(len(latents), -1, -1)
        for start, end in pairwise(self._timesteps):
            now = torch.full((len(latents),), start, device=self.device)
            prediction = self.network(latents, timesteps=now, context=context)
            kept, left = self._kept[start], self._kept[end]
            sample, noise = _sample_and_noise(self._kind, latents, prediction, kept)
            latents = left.sqrt() * sample + (1 - left).sqrt() * noise
        height, width = (-(-side // self.pixels_per_latent) for side in images.shape[-2:])
        return latents[..., :height, :width].float().cpu()

    @torch.no_grad()
    def latents_of(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] -> (B, C, h, w) latents, of as many pixels as the network can take."""
        rows, columns = images.shape[-2:]
        beyond = [-side % self._multiple for side in (columns, rows)]
        inputs = pad(images, (0, beyond[0], 0, beyond[1]), "replicate").expand(-1, 3, -1, -1).to(self.device)
        return scaled(self._vae, self._vae.encode(inputs).latent_dist.mean)


def _sample_and_noise(kind: str, latents: Tensor, prediction: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """What a prediction says of latents: their signal, and their noise (Salimans and Ho, ICLR 2022, appendix D)."""
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    if kind == "epsilon":
        return (latents - noise * prediction) / signal, prediction
    if kind == "sample":
        return prediction, (latents - signal * prediction) / noise
    return signal * latents - noise * prediction, signal * prediction + noise * latents


@lru_cache(maxsize=2)
def bundled_inversion(models: str | Path) -> Inversion:
    """That of the small model in a bundle's folder ``models``.

    Raises:
        InputError: if it is not there.
    """
    base, weights = Path(models, "tiny"), Path(models, "model.pt")
    if not base.is_dir():
        raise InputError(f"mark: {models} holds no small model, which finding marks needs; give --base-model")
    return Inversion(Source(str(base), str(weights) if weights.is_file() else BASE_WEIGHTS))
