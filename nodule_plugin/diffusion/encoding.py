"""Images to latents: the frozen autoencoder behind its cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from nodule_plugin.data.latents import LatentCache, LatentDataset, data_fingerprint
from nodule_plugin.data.transforms import NoduleROId
from nodule_plugin.diffusion.components import TextConditioner, weights_fingerprint
from nodule_plugin.diffusion.latent_space import pixels_per_latent, scaled

logger = logging.getLogger(__name__)


class LatentEncoder:
    """The latent distributions of a batch, from the cache where they are known and from the autoencoder where not.

    Args:
        vae: frozen; encodes in float32 whatever the training's precision, since bfloat16 errs by 2 to 3 per cent here.
        cache: takes what was encoded; None encodes every time.
        batch_size: images encoded at once.
    """

    def __init__(self, vae: AutoencoderKL, cache: LatentCache | None = None, batch_size: int = 8) -> None:
        self.vae = vae
        self.cache = cache
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Sequence[Any]], device: torch.device | str | None = None) -> Tensor:
        """Mean and log variance, (B, 2 C, h, w) float32, of a batch of samples.

        A batch may mix images with moments: those of its images that have become known since it was read are taken
        from the cache, the others are encoded and kept.
        """
        device = next(self.vae.parameters()).device if device is None else device
        known = list(batch["moments"])
        entries = list(zip(batch["index"], batch["orientation"]))
        if self.cache is not None:
            known = [kept if kept is not None else self.cache.get(*entry) for kept, entry in zip(known, entries)]
        missing = [row for row, moments in enumerate(known) if moments is None]
        for first in range(0, len(missing), self.batch_size):
            rows = missing[first : first + self.batch_size]
            moments = self._encode(torch.stack([batch["image"][row] for row in rows]).to(device))
            if self.cache is not None:
                self.cache.put([entries[row] for row in rows], moments)
            for row, encoded in zip(rows, moments):
                known[row] = encoded
        return torch.stack([moments.to(device, non_blocking=True) for moments in known])

    def _encode(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.vae.encode(images.float()).latent_dist.parameters


def draw_latents(vae: AutoencoderKL, moments: Tensor, noise: Tensor) -> Tensor:
    """Latents drawn from their distribution, scaled as the base model's own configuration says.

    Args:
        vae: its configuration gives the scaling (and, where it has one, the shift).
        moments: (B, 2 C, h, w) mean and log variance.
        noise: (B, C, h, w) standard normal.

    Returns:
        (B, C, h, w), about unit variance.
    """
    distribution = DiagonalGaussianDistribution(moments)
    return scaled(vae, distribution.mean + distribution.std * noise)


def open_latent_cache(
    folder: str | Path | None,
    split: str,
    vae: AutoencoderKL,
    items: Sequence[Mapping[str, Any]],
    transform: NoduleROId,
) -> LatentCache | None:
    """The cache of one split of a data list; of several processes the first makes it and the others open it.

    Args:
        folder: of all splits' caches; None for no cache.
        split: "training", "validation" or "test": the folder's own folder.
        vae: decides, with the items and the transform, what the cache is of.
        items, transform: see :func:`nodule_plugin.data.latents.data_fingerprint`.

    Raises:
        InputError: if the folder cannot be written to or the disk has not the room.
    """
    if folder is None or not items:
        return None
    factor = pixels_per_latent(vae)
    shape = (2 * vae.config.latent_channels, *(side // factor for side in transform.image_size))
    fingerprint = sha256((weights_fingerprint(vae) + data_fingerprint(items, transform)).encode()).hexdigest()
    with idist.one_rank_first(rank=0, local=False):
        cache = LatentCache(Path(folder) / split, fingerprint, len(items), shape)
    logger.info(
        "Latents of the %s split: %.0f %% in %s (%.2f GiB)",
        split,
        100 * cache.complete,
        cache.folder,
        cache.nbytes / 2**30,
    )
    return cache


def latent_dataset(
    data: Sequence[Mapping[str, Any]],
    transform: NoduleROId,
    vae: AutoencoderKL,
    folder: str | Path | None,
    split: str,
    augment: bool = True,
) -> LatentDataset:
    """A split of a data list as samples, with its cache opened: :class:`LatentDataset`, :func:`open_latent_cache`."""
    cache = open_latent_cache(folder, split, vae, data, transform)
    return LatentDataset(data, transform, cache, augment)


def remember_prompts(
    conditioner: TextConditioner, items: Sequence[Mapping[str, Any]], folder: str | Path | None
) -> TextConditioner:
    """``conditioner`` with the embeddings of all prompts of ``items``, kept in a folder between runs.

    Args:
        conditioner: changed and returned.
        items: of a data list.
        folder: gets ``prompts.safetensors``; None keeps embeddings in memory only.

    Raises:
        InputError: see :meth:`nodule_plugin.diffusion.components.TextConditioner.remember`.
    """
    with idist.one_rank_first(rank=0, local=False):
        return conditioner.remember(
            (item["prompt"] for item in items), None if folder is None else Path(folder) / "prompts.safetensors"
        )
