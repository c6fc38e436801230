"""What extractors of features in Hounsfield units have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window, unit_to_hu


class HounsfieldFeatures:
    """An extractor without weights: what it gives follows from its definition and the window.

    Attributes:
        key: that :attr:`id` begins with.
        definition: what the features follow from besides the window.

    Args:
        window_hu: (lower, upper) Hounsfield units of black and white.
    """

    key: str
    definition: tuple[object, ...]
    unavailable: str | None = None

    def __init__(self, window_hu: Sequence[float] = DEFAULT_WINDOW_HU) -> None:
        self.window_hu = checked_window(window_hu)

    @property
    def id(self) -> str:
        """Equal for extractors that give equal features."""
        return f"{self.key}:{self.window_hu}"

    @property
    def fingerprint(self) -> str:
        """See :class:`nodule_plugin.metrics.feature_cache.Encoder`."""
        return hashlib.sha256(repr((*self.definition, self.window_hu)).encode()).hexdigest()

    def hounsfield(self, images: Tensor) -> np.ndarray:
        """(B, 3, H, W) images in [-1, 1], through 8 bits -> (B, H, W) float32 Hounsfield units."""
        return unit_to_hu(to_uint8(images.detach().cpu())[:, 0].numpy() / 127.5 - 1.0, self.window_hu)
