"""Whether generated images have natural Hounsfield units: their histogram, and their power spectrum for noise texture.

The spectrum is that of a noise power spectrum (ICRU report 87, "Radiation dose and image-quality assessment in computed
tomography", 2012; AAPM report 233, 2019), but of the whole image with what it shows: low frequencies are anatomy, high
ones noise and the sharpness of edges. Comparing sets, both matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window, unit_to_hu
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.intervals import NORMAL_95

BINS = 28
"""Of the histogram, equally wide over the window: 50 HU each over the default one."""
BANDS = 16
"""Of the spectrum, equally wide from 0 to 0.5 cycles a pixel."""


def histogram(hu: np.ndarray, window_hu: Sequence[float]) -> np.ndarray:
    """Fractions of (N, H, W) images' pixels in each bin of the window, (N, BINS); its ends take what lies beyond."""
    low, high = window_hu
    bins = np.clip(np.floor((hu - low) / (high - low) * BINS), 0, BINS - 1).astype(int).reshape(len(hu), -1)
    return np.stack([np.bincount(row, minlength=BINS) for row in bins]) / bins.shape[1]


def power_spectrum(hu: np.ndarray, floor: float) -> np.ndarray:
    """Radial means of the power spectral density of (N, H, H) images in dB over 1 HU² a pixel², (N, BANDS).

    Each image less its best plane, under a Hann window. White noise of standard deviation s has 20 log10(s) everywhere.

    Args:
        hu: H of 2 * BANDS or more.
        floor: HU², added to every power: what the images' grey levels cannot resolve.

    Raises:
        InputError: for images that are not square, or smaller.
    """
    side = hu.shape[-1]
    if hu.shape[-2] != side or side < 2 * BANDS:
        raise InputError(f"power spectrum: square images of {2 * BANDS} pixels or more are needed, not {hu.shape[1:]}")
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    basis = np.stack([np.ones((side, side)), rows, columns]).reshape(3, -1)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    flat = hu.reshape(len(hu), -1)
    residue = (flat - flat @ basis.T @ basis).reshape(hu.shape)
    hann = np.hanning(side + 2)[1:-1]
    window = np.outer(hann, hann)
    power = np.abs(np.fft.fft2(residue * window)) ** 2 / np.square(window).sum()
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    band = (frequency * 2 * BANDS).astype(int)
    inside = (frequency > 0) & (band < BANDS)
    means = [power[:, inside & (band == number)].mean(axis=1) for number in range(BANDS)]
    return 10 * np.log10(np.stack(means, axis=1) + floor)


class GreyValueFeatures:
    """Histogram and spectrum of an image, BINS + BANDS numbers, as a feature extractor.

    Args:
        window_hu: (lower, upper) Hounsfield units of black and white.
    """

    name = "grey values in HU"
    unavailable: str | None = None

    def __init__(self, window_hu: Sequence[float] = DEFAULT_WINDOW_HU) -> None:
        self.window_hu = checked_window(window_hu)

    @property
    def id(self) -> str:
        """Equal for extractors that give equal features."""
        return f"grey values:{self.window_hu}"

    @property
    def fingerprint(self) -> str:
        """See :class:`nodule_plugin.metrics.feature_cache.Encoder`."""
        return hashlib.sha256(repr((BINS, BANDS, self.window_hu)).encode()).hexdigest()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) images in [-1, 1] -> (B, BINS + BANDS) features."""
        grey = to_uint8(images.detach().cpu())[:, 0].numpy()
        hu = np.asarray(unit_to_hu(grey / 127.5 - 1.0, self.window_hu), dtype=np.float64)
        step = (self.window_hu[1] - self.window_hu[0]) / 255
        features = [histogram(hu, self.window_hu), power_spectrum(hu, step**2 / 12)]
        return torch.from_numpy(np.concatenate(features, axis=1)).float()


def histogram_distance(real: np.ndarray, other: np.ndarray, window_hu: Sequence[float]) -> float:
    """HU by which a pixel of one set must move on average to give the other's histogram (Wasserstein distance).

    Args:
        real: (BINS + BANDS,) mean features of a set.
        other: of the other.
        window_hu: of the features.
    """
    width = (window_hu[1] - window_hu[0]) / BINS
    return float(np.abs(np.cumsum(real[:BINS] - other[:BINS])).sum() * width)


def spectrum_distance(real: np.ndarray, other: np.ndarray) -> float:
    """Root mean square over the frequencies of the difference between the mean spectra of two sets' features, dB."""
    return float(np.sqrt(np.square(real[BINS:] - other[BINS:]).mean()))


def grey_value_curves(images: ImageSet, extractor_id: str) -> dict[str, Any]:
    """Mean histogram and spectrum of a set with their 95 % intervals over images, each a list, in plain JSON types."""
    rows = images.features_of(extractor_id).read()
    mean = rows.mean(axis=0)
    half = NORMAL_95 * rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.zeros_like(mean)
    slices = {"histogram": slice(0, BINS), "spectrum": slice(BINS, None)}
    curves: dict[str, Any] = {name: mean[own].tolist() for name, own in slices.items()}
    bands = {f"{name}_ci95": np.stack([mean - half, mean + half], axis=1)[own].tolist() for name, own in slices.items()}
    return {**curves, **bands}


def mean_rows(rows: FeatureRows) -> np.ndarray:
    """(D,) mean of all rows."""
    return sum(block.sum(axis=0) for block in rows.blocks()) / len(rows)
