"""Radiomic features of one slice: a stated subset of the IBSI reference manual, in Hounsfield units.

pyradiomics does not install on Python 3.11. Here are the manual's intensity-based statistics, entropy and uniformity of
the discretised intensities, and the grey-level co-occurrence features, two-dimensional and averaged over directions.
Source: Zwanenburg et al., "Image biomarker standardisation initiative", arXiv:1612.07003; "The Image Biomarker
Standardization Initiative", Radiology 2020;295:328-338. The features' names are the manual's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.metrics.hounsfield_features import HounsfieldFeatures

BIN_HU = 25.0
"""Width of a grey level, counted from the window's lower end (the manual's fixed bin size)."""
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
INTENSITY = (
    *("mean", "variance", "skewness", "excess kurtosis", "median", "minimum", "10th percentile", "90th percentile"),
    *("maximum", "interquartile range", "range", "mean absolute deviation", "robust mean absolute deviation"),
    *("median absolute deviation", "energy", "root mean square"),
)
HISTOGRAM = ("discretised intensity entropy", "discretised intensity uniformity")
COOCCURRENCE = (
    *("joint maximum", "joint average", "joint variance", "joint entropy", "difference average"),
    *("difference variance", "difference entropy", "sum average", "sum variance", "sum entropy"),
    *("angular second moment", "contrast", "dissimilarity", "inverse difference", "normalised inverse difference"),
    *("inverse difference moment", "normalised inverse difference moment", "inverse variance", "correlation"),
    *("autocorrelation", "cluster tendency", "cluster shade", "cluster prominence"),
    *("information correlation 1", "information correlation 2"),
)
# Of these, each is a function of others within one window and size: they would weigh the same thing twice.
_LEFT_OUT = ("range", "energy", "sum average", "dissimilarity", "sum variance")
FEATURES = tuple(name for name in (*INTENSITY, *HISTOGRAM, *COOCCURRENCE) if name not in _LEFT_OUT)
"""The features of :class:`RadiomicFeatures`, in their order."""


def intensity_statistics(values: np.ndarray) -> dict[str, float]:
    """The manual's section 3.3: statistics of the intensities in the region, in one dimension and any order."""
    values = np.asarray(values, dtype=np.float64)
    mean, median = values.mean(), np.median(values)
    centred = values - mean
    variance = np.square(centred).mean()
    low, lower, upper, high = np.percentile(values, [10, 25, 75, 90])
    robust = values[(values >= low) & (values <= high)]
    statistics = [
        *(mean, variance),
        (centred**3).mean() / variance**1.5 if variance > 0 else 0.0,
        (centred**4).mean() / variance**2 - 3.0 if variance > 0 else 0.0,
        *(median, values.min(), low, high, values.max(), upper - lower, np.ptp(values)),
        *(np.abs(centred).mean(), np.abs(robust - robust.mean()).mean(), np.abs(values - median).mean()),
        *(np.square(values).sum(), np.sqrt(np.square(values).mean())),
    ]
    return {name: float(value) for name, value in zip(INTENSITY, statistics)}


def histogram_statistics(levels: np.ndarray) -> dict[str, float]:
    """Two of the manual's section 3.4: entropy (bits) and uniformity of the grey levels in the region."""
    p = np.unique(levels, return_counts=True)[1] / levels.size
    return dict(zip(HISTOGRAM, (_entropy(p), float(np.square(p).sum()))))


def cooccurrence_statistics(levels: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """The manual's section 3.6, two-dimensional, at distance 1, symmetric; the mean over the four directions.

    Args:
        levels: (rows, columns) grey levels from 1.
        mask: (rows, columns), True in the region; None for all.
    """
    inside = np.ones(levels.shape, bool) if mask is None else mask
    top = int(levels[inside].max())
    by_direction = [_of_matrix(_matrix(levels, inside, step, top)) for step in DIRECTIONS]
    return {name: float(np.mean([statistics[name] for statistics in by_direction])) for name in COOCCURRENCE}


def _matrix(levels: np.ndarray, inside: np.ndarray, step: tuple[int, int], top: int) -> np.ndarray:
    """(top, top) fractions of pairs of neighbours, both ways."""
    rows, columns = step
    left, right = max(0, -columns), max(0, columns)
    height, width = levels.shape
    near = np.s_[: height - rows, left : width - right]
    far = np.s_[rows:, left + columns : width - right + columns]
    both = inside[near] & inside[far]
    pairs = (levels[near][both] - 1) * top + levels[far][both] - 1
    counts = np.bincount(pairs, minlength=top * top).reshape(top, top)
    return (counts + counts.T) / (2 * counts.sum())


def _of_matrix(p: np.ndarray) -> dict[str, float]:
    count = len(p)
    i, j = np.mgrid[1 : count + 1, 1 : count + 1]
    levels, marginal = np.arange(1, count + 1), p.sum(axis=1)
    mean = (levels * marginal).sum()
    variance = (np.square(levels - mean) * marginal).sum()
    gap = np.abs(i - j)
    differences = np.bincount(gap.ravel(), p.ravel(), minlength=count)
    sums = np.bincount((i + j).ravel(), p.ravel(), minlength=2 * count + 1)
    steps, totals = np.arange(count), np.arange(2 * count + 1)
    difference_mean, sum_mean = (steps * differences).sum(), (totals * sums).sum()
    off = gap > 0
    product = np.outer(marginal, marginal)
    joint, single = _entropy(p), _entropy(marginal)
    cross, independent = -(p * _log2(product)).sum(), _entropy(product)
    statistics = [
        *(p.max(), mean, variance, joint, difference_mean),
        *((np.square(steps - difference_mean) * differences).sum(), _entropy(differences)),
        *(sum_mean, (np.square(totals - sum_mean) * sums).sum(), _entropy(sums)),
        *(np.square(p).sum(), (np.square(gap) * p).sum(), difference_mean),
        *((p / (1 + gap)).sum(), (p / (1 + gap / count)).sum()),
        *((p / (1 + np.square(gap))).sum(), (p / (1 + np.square(gap / count))).sum()),
        (p[off] / np.square(gap[off])).sum(),
        ((i - mean) * (j - mean) * p).sum() / variance if variance > 0 else 1.0,
        *((i * j * p).sum(), *(((i + j - 2 * mean) ** power * p).sum() for power in (2, 3, 4))),
        (joint - cross) / single if single > 0 else 0.0,
        np.sqrt(max(0.0, 1.0 - np.exp(-2.0 * (independent - joint)))),
    ]
    return {name: float(value) for name, value in zip(COOCCURRENCE, statistics)}


def _log2(values: np.ndarray) -> np.ndarray:
    return np.log2(values, out=np.zeros_like(values), where=values > 0)


def _entropy(p: np.ndarray) -> float:
    return float(-(p * _log2(p)).sum())


class RadiomicFeatures(HounsfieldFeatures):
    """:data:`FEATURES` of the whole image, as a feature extractor.

    Args:
        window_hu: (lower, upper) Hounsfield units of black and white.
    """

    name = f"{len(FEATURES)} radiomic features"
    key = "radiomics"
    definition = (FEATURES, BIN_HU)
    convention: Mapping[str, Any] = MappingProxyType({"bin_hu": BIN_HU})

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, len(FEATURES)) features."""
        return torch.tensor(np.array([self._of(hu) for hu in self.hounsfield(images)]), dtype=torch.float32)

    def _of(self, hu: np.ndarray) -> list[float]:
        levels = np.floor((hu - self.window_hu[0]) / BIN_HU).astype(int) + 1
        statistics = intensity_statistics(hu) | histogram_statistics(levels) | cooccurrence_statistics(levels)
        return [statistics[name] for name in FEATURES]
