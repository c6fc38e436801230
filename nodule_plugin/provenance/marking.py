"""The mark as those who make images use it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nodule_plugin.provenance.codebook import MarkKey, payload_of, read_key
from nodule_plugin.provenance.noise import SMALLEST, mark_noise
from nodule_plugin.settings import as_flag

SCHEME = "nodule-plugin 3"
"""Name and version of how words, bands and detector are made; marks of one are not found by another."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoiseMark:
    """Marks the noise of a run's images.

    Attributes:
        key: of the mark.
        payload: what it says.
    """

    key: MarkKey
    payload: str

    def __call__(self, noise: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, C, h, w) noise drawn with B seeds, marked; each image for itself."""
        return torch.stack([mark_noise(one, seed, self.payload, self.key) for one, seed in zip(noise, seeds)])

    @property
    def described(self) -> dict[str, Any]:
        """What manifests say of it; the key's secret is not in it."""
        return {"scheme": SCHEME, "key": self.key.name, "payload": self.payload}


def noise_mark(
    mark: bool | str, mark_key: str | Path | None, weights_sha256: str, latent_shape: Sequence[int]
) -> NoiseMark | None:
    """The mark that a run's settings ask for; None where none is wanted, or latents are too small for one.

    Args:
        mark: whether one is wanted.
        mark_key: see :func:`nodule_plugin.provenance.codebook.read_key`.
        weights_sha256: of the model.
        latent_shape: channels, rows, columns.

    Raises:
        InputError: if the key's file cannot be used.
    """
    key = read_key(mark_key)
    if not as_flag("mark", mark):
        return None
    if min(latent_shape[1:]) < SMALLEST:
        logger.warning("latents of %d a side are too small for a mark, which needs %d", min(latent_shape[1:]), SMALLEST)
        return None
    return NoiseMark(key, payload_of(weights_sha256))
