"""The mark as those who write images use it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nodule_plugin.provenance.codebook import MarkKey, payload_of, read_key
from nodule_plugin.provenance.embedding import SMALLEST, embed
from nodule_plugin.settings import as_flag

SCHEME = "nodule-plugin 2"
"""Name and version of how words, band and detector are made; marks of one are not found by another."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Marker:
    """Marks the images of a run.

    Attributes:
        key: of the mark.
        payload: what it says.
        window_hu: Hounsfield units of -1 and 1.
    """

    key: MarkKey
    payload: str
    window_hu: Sequence[float]

    def __call__(self, unit: np.ndarray) -> np.ndarray:
        """(rows, columns) in [-1, 1], marked."""
        return embed(unit, self.payload, self.key, self.window_hu)

    @property
    def described(self) -> dict[str, Any]:
        """What manifests say of it; the key's secret is not in it."""
        return {"scheme": SCHEME, "key": self.key.name, "payload": self.payload}


def marker(
    mark: bool | str, mark_key: str | Path | None, weights_sha256: str, image_size: int, window_hu: Sequence[float]
) -> Marker | None:
    """The mark that a run's settings ask for; None where none is wanted, or images are too small for one.

    Raises:
        InputError: if the key's file cannot be used.
    """
    key = read_key(mark_key)
    if not as_flag("mark", mark):
        return None
    if image_size < SMALLEST:
        logger.warning("images of %d pixels a side are too small for a mark, which needs %d", image_size, SMALLEST)
        return None
    return Marker(key, payload_of(weights_sha256), window_hu)
