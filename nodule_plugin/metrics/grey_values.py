"""Whether generated images have natural Hounsfield units: their histogram against that of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.metrics.hounsfield_features import HounsfieldFeatures
from nodule_plugin.metrics.intervals import NORMAL_95

BINS = 28
"""Of the histogram, equally wide over the window: 50 HU each over the default one."""


def histogram(hu: np.ndarray, window_hu: Sequence[float]) -> np.ndarray:
    """Fractions of (N, H, W) images' pixels in each bin of the window, (N, BINS); its ends take what lies beyond."""
    low, high = window_hu
    bins = np.clip(np.floor((hu - low) / (high - low) * BINS), 0, BINS - 1).astype(int).reshape(len(hu), -1)
    return np.stack([np.bincount(row, minlength=BINS) for row in bins]) / bins.shape[1]


class GreyValueFeatures(HounsfieldFeatures):
    """The histogram of an image, BINS numbers, as a feature extractor.

    Args:
        window_hu: (lower, upper) Hounsfield units of black and white.
    """

    name = "grey values in HU"
    key = "grey values"
    definition = ("histogram", BINS)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, BINS) features."""
        hu = self.hounsfield(images).astype(np.float64)
        return torch.from_numpy(histogram(hu, self.window_hu)).float()


def histogram_distance(real: np.ndarray, other: np.ndarray, window_hu: Sequence[float]) -> float:
    """HU by which a pixel of one set must move on average to give the other's histogram (Wasserstein distance).

    Args:
        real: (BINS,) mean features of a set.
        other: of the other.
        window_hu: of the features.
    """
    width = (window_hu[1] - window_hu[0]) / BINS
    return float(np.abs(np.cumsum(real - other)).sum() * width)


def grey_value_curves(images: ImageSet, extractor_id: str) -> dict[str, Any]:
    """Mean histogram of a set with its 95 % interval over images, as lists."""
    rows = images.features_of(extractor_id).read()
    mean = rows.mean(axis=0)
    half = NORMAL_95 * rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.zeros_like(mean)
    interval = np.stack([mean - half, mean + half], axis=1)
    return {"histogram": mean.tolist(), "histogram_ci95": interval.tolist()}


def mean_rows(rows: FeatureRows) -> np.ndarray:
    """(D,) mean of all rows."""
    return sum(block.sum(axis=0) for block in rows.blocks()) / len(rows)
