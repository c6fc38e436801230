"""The marks as those who make images use them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.provenance.codebook import MarkKey, payload_of, read_key
from nodule_plugin.provenance.noise import SMALLEST, mark_noise
from nodule_plugin.provenance.parity_mark import GENERATED, ParityMark, rounded
from nodule_plugin.settings import as_flag

SCHEME = "nodule-plugin 3"
"""Name and version of how words, bands and detector are made; marks of one are not found by another."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageMark:
    """Marks a run's images: the noise that they are made from, and the numbers that files hold.

    Attributes:
        key: of the mark.
        payload: what it says.
    """

    key: MarkKey
    payload: str

    def __call__(self, noise: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, C, h, w) noise drawn with B seeds, marked; each image for itself."""
        return torch.stack([mark_noise(one, seed, self.payload, self.key) for one, seed in zip(noise, seeds)])

    def whole(self, values: np.ndarray, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
        """An image's values as the whole numbers that are stored, marked; each at most 1 away from the value.

        Args:
            values: (rows, columns) Hounsfield units or greys.
            low, high: see :func:`nodule_plugin.provenance.parity_mark.rounded`.
        """
        return rounded(values, self._numbers.parity((1, *values.shape))[0], low, high)

    @property
    def _numbers(self) -> ParityMark:
        return ParityMark(self.key, self.payload, GENERATED)

    @property
    def described(self) -> dict[str, Any]:
        """What manifests say of it; the key's secret is not in it."""
        return {"scheme": SCHEME, "numbers": GENERATED.scheme, "key": self.key.name, "payload": self.payload}


def image_mark(
    mark: bool | str, mark_key: str | Path | None, weights_sha256: str, latent_shape: Sequence[int]
) -> ImageMark | None:
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
    return ImageMark(key, payload_of(weights_sha256))
