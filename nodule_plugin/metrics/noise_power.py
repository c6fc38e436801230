"""Noise power spectra of sets of images, in HU² mm² by radial frequency in cycles per mm, and how far two are apart.

The definition is that of CT physics (ICRU Report 87, "Radiation dose and image-quality assessment in computed
tomography", J ICRU 2012;12; AAPM Task Group 233, "Performance evaluation of computed tomography systems", 2019):
``NPS = dx dy / (Nx Ny) <|DFT(region less its best plane, under a window)|²> / <window²>``, averaged over directions and
regions. Theirs are regions of a uniform phantom; these are of nodules, so that low frequencies are anatomy, and high
ones noise and the sharpness of edges. Two sets are compared, and both matter. What regions show differs by factors of a
thousand, and a mean of powers would be that of the few with bone or a vessel: over regions decibels are averaged.

A region of interest was enlarged from so many native pixels: beyond their Nyquist frequency there is no CT in an image
but what the resampling kernel left, and the image does not count there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import ImageRecord, ImageSet
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.hounsfield_features import HounsfieldFeatures
from nodule_plugin.metrics.intervals import NORMAL_95
from nodule_plugin.metrics.two_samples import MIN_IMAGES

RINGS = 32
"""Of an image's spectrum: 1 to 32 cycles a side. A region of 64 native pixels has no more."""
PER_MM = np.arange(1, 23) / 20
"""Frequencies that regions of known size are compared at, cycles / mm; pixels of 0.46 mm reach to 1.09."""
DECIBEL = 10 / np.log(10)


def ring_powers(hu: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Noise power of (N, H, H) images at 1 to :data:`RINGS` cycles a side, the side taken as 1: (N, RINGS) HU² side².

    Each image less its best plane, under a Hann window; the mean over the ring of frequencies that round to the number.
    White noise of standard deviation s has ``s² / H²`` in all rings.

    Args:
        hu: H of 4 or more.
        floor: HU² pixel² that no power is given less than: what the images' grey levels cannot resolve.

    Returns:
        Rings beyond H / 2 cycles, which there are not, are 0.

    Raises:
        InputError: for images that are not square, or smaller.
    """
    side = hu.shape[-1]
    if hu.shape[-2] != side or side < 4:
        raise InputError(f"noise power: square images of 4 pixels or more are needed, not {hu.shape[1:]}")
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    basis = np.stack([np.ones((side, side)), rows, columns]).reshape(3, -1)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    flat = hu.reshape(len(hu), -1)
    residue = (flat - flat @ basis.T @ basis).reshape(hu.shape)
    hann = np.hanning(side + 2)[1:-1]
    window = np.outer(hann, hann)
    power = np.abs(np.fft.fft2(residue * window)) ** 2 / np.square(window).sum()
    cycles = np.fft.fftfreq(side, 1 / side)
    ring = np.rint(np.hypot(*np.meshgrid(cycles, cycles))).astype(int)
    known = np.arange(1, min(RINGS, side // 2) + 1)
    means = np.zeros((len(hu), RINGS))
    means[:, known - 1] = np.stack([power[:, ring == number].mean(axis=1) for number in known], axis=1).clip(min=floor)
    return means / side**2


class NoisePowerFeatures(HounsfieldFeatures):
    """:func:`ring_powers` of an image in HU, as a feature extractor.

    Args:
        window_hu: (lower, upper) Hounsfield units of black and white.
    """

    name = "noise power spectrum"
    key = "noise power"
    definition = ("noise power", RINGS)
    convention: Mapping[str, Any] = MappingProxyType(
        {"detrending": "best plane", "taper": "Hann", "band": "to the native Nyquist frequency"}
    )

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) images in [-1, 1] -> (B, RINGS) features."""
        hu = self.hounsfield(images).astype(np.float64)
        step = (self.window_hu[1] - self.window_hu[0]) / 255
        return torch.from_numpy(ring_powers(hu, step**2 / 12)).float()


@dataclass(frozen=True)
class RegionSizes:
    """How large the regions are that a set's images show.

    Attributes:
        side_mm: (N,) of each; None where the reference images' are not known: the side is then the unit of length.
        native: (N,) native pixels along a side.
        source: where these numbers come from, in words.
    """

    side_mm: np.ndarray | None
    native: np.ndarray
    source: str


def region_sizes(images: ImageSet, real: ImageSet) -> RegionSizes:
    """The sizes of a set's regions, as its records state them or as reference images have them.

    A generated image has no native pixels. It takes size and native pixels of the real image whose findings it was made
    from; failing that its stated size and the reference images' median spacing; failing that, image by image, what the
    reference images have, so that both sets have one distribution.

    Args:
        images: whose sizes.
        real: the reference images.
    """
    reference = [size for record in real.records if (size := _own_size(record)) is not None]
    if len(reference) < len(real):
        everywhere = 2.0 * RINGS  # as far as the pixels themselves go
        native = np.array([record.native_pixels or everywhere for record in images.records])
        return RegionSizes(None, native, "not known: lengths are in sides of the image")
    by_source = {record.id: size for record, size in zip(real.records, reference)}
    spacing = float(np.median([roi / native for roi, native in reference]))
    sizes, sources = [], []
    for index, record in enumerate(images.records):
        if (own := _own_size(record)) is not None:
            size, source = own, "their own"
        elif record.source_id in by_source:
            size, source = by_source[record.source_id], "of the real images that they were made from"
        elif record.roi_mm is not None:
            size, source = (record.roi_mm, record.roi_mm / spacing), "as stated, at the reference images' spacing"
        else:
            size, source = reference[index % len(reference)], "those of the reference images by turns"
        sizes.append(size)
        sources.append(source)
    side, native = np.array(sizes, dtype=float).T
    return RegionSizes(side, native, "; ".join(dict.fromkeys(sources)))


def _own_size(record: ImageRecord) -> tuple[float, float] | None:
    if record.roi_mm is None or record.native_pixels is None:
        return None
    return record.roi_mm, record.native_pixels


@lru_cache(maxsize=8)  # the number, its error and the curve ask for the same
def sized_powers(images: ImageSet, real: ImageSet, extractor_id: str) -> FeatureRows:
    """Each image's noise power at :data:`PER_MM` in HU² mm², or at 1 to RINGS cycles a side in HU² side².

    The second where sizes are not known, see :func:`region_sizes`. 0 says that an image does not count at a frequency:
    it lies below one cycle a side, or above the Nyquist frequency of native pixels or of the image's own.
    """
    powers = images.features_of(extractor_id).read()
    sizes = region_sizes(images, real)
    cycles = np.minimum(sizes.native / 2, (powers > 0).sum(axis=1))
    if sizes.side_mm is None:
        return FeatureRows(np.where(np.arange(1, RINGS + 1) <= cycles[:, None], powers, 0.0))
    rings = np.arange(1, RINGS + 1)
    return FeatureRows(
        np.stack(
            [
                np.interp(PER_MM, rings / side, power * side**2) * (1 / side <= PER_MM) * (most / side >= PER_MM)
                for power, side, most in zip(powers, sizes.side_mm, cycles)
            ]
        )
    )


def mean_power(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean over the images that count at each frequency, and how many they are; NaN where fewer than two do.

    Args:
        rows: (N, F) as :func:`sized_powers` gives them.
    """
    counts = (rows > 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.exp(_logarithms(rows).sum(axis=0) / counts)
    return np.where(counts >= MIN_IMAGES, mean, np.nan), counts


def _logarithms(rows: np.ndarray) -> np.ndarray:
    """0 where an image does not count."""
    return np.log(rows, out=np.zeros_like(rows), where=rows > 0)


def noise_power_distance(real: FeatureRows, fake: FeatureRows) -> float:
    """Root mean square over frequencies of the ratio of two sets' mean noise power, dB.

    A frequency counts as often as images do at it, in the set where these are fewer.

    Args:
        real, fake: of :func:`sized_powers`.

    Returns:
        NaN where no frequency is covered by two images of either set.
    """
    (one, counts), (other, other_counts) = (mean_power(rows.read()) for rows in (real, fake))
    known = np.isfinite(one) & np.isfinite(other)
    if not known.any():
        return float("nan")
    weights = np.minimum(counts, other_counts)[known]
    return float(np.sqrt(np.average(np.square(DECIBEL * np.log(other[known] / one[known])), weights=weights)))


def noise_power_curves(sets: Sequence[ImageSet], real: ImageSet, extractor_id: str) -> dict[str, Any]:
    """Mean noise power of each set, and its ratio to the real images', with 95 % intervals over patients.

    Args:
        sets: to draw, the real one among them.
        real: the reference images.
        extractor_id: of :class:`NoisePowerFeatures`.

    Returns:
        In plain JSON types: ``frequency``, those at which two images or more of every set count, and its
        ``frequency_unit``; ``frequency_per_mm``, the same, or none where sizes are not known; ``unit`` of the power;
        ``sets`` with ``power``, ``ci95``, ``images`` (how many count) and ``sizes`` (where those come from);
        ``ratio_db``, one a generated set, with ``value`` and ``ci95``.
    """
    tables = [sized_powers(images, real, extractor_id).read() for images in sets]
    means, counts = (np.stack(values) for values in zip(*map(mean_power, tables)))
    errors = np.stack([_error(*known) for known in zip(tables, means, sets)])
    covered = np.isfinite(means).all(axis=0) & np.isfinite(errors).all(axis=0)
    means, errors, counts = (values[:, covered] for values in (means, errors, counts))
    in_mm = region_sizes(real, real).side_mm is not None
    frequencies = (PER_MM if in_mm else np.arange(1, RINGS + 1))[covered].tolist()
    base = next(index for index, images in enumerate(sets) if images is real)
    rows, ratios = [], []
    for images, mean, error, count in zip(sets, means, errors, counts):
        name = {"model": images.key.model, "guidance_scale": images.key.guidance_scale}
        ends = np.exp(_interval(np.log(mean), error))
        curve = {"power": mean.tolist(), "ci95": ends.tolist(), "images": count.tolist()}
        rows.append({"kind": images.key.kind, **name, **curve, "sizes": region_sizes(images, real).source})
        if images is not real:
            ratio = DECIBEL * np.log(mean / means[base])
            ends = _interval(ratio, DECIBEL * np.hypot(error, errors[base]))
            ratios.append({**name, "value": ratio.tolist(), "ci95": ends.tolist()})
    return {
        "unit": "HU² mm²" if in_mm else "HU² side²",
        "frequency_unit": "cycles / mm" if in_mm else "cycles / side",
        "frequency": frequencies,
        "frequency_per_mm": frequencies if in_mm else [],
        "sets": rows,
        "ratio_db": ratios,
    }


def _interval(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    return np.stack([value - NORMAL_95 * error, value + NORMAL_95 * error], axis=1)


def _error(rows: np.ndarray, mean: np.ndarray, images: ImageSet) -> np.ndarray:
    """Standard error of the mean logarithm at each frequency, over patients: images of one are not independent."""
    patients = [record.patient_id or f"image {index}" for index, record in enumerate(images.records)]
    number = np.unique(patients, return_inverse=True)[1]
    present = rows > 0
    residues, there = np.zeros((2, number.max() + 1, rows.shape[1]))
    np.add.at(residues, number, np.where(present, _logarithms(rows) - np.log(mean), 0.0))
    np.add.at(there, number, present)
    count = (there > 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.square(residues).sum(axis=0) * count / (count - 1)) / present.sum(axis=0)
