"""The noise of a CT around a place, and what a nodule lacks of it.

In-plane detail is split into octaves (differences of Gaussians), as coarse a spectrum as a small nodule allows; in each
the standard deviation is that of the median absolute deviation, which edges and vessels hardly move. That is the
noise's level and, octave by octave, the reconstruction kernel's mark on it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import binary_erosion, gaussian_filter, generate_binary_structure, uniform_filter1d

from nodule_plugin.insertion.host import Host
from nodule_plugin.insertion.place import Place

_SIGMAS = (0.7, 1.4, 2.8)
"""Of the Gaussians whose differences are the three octaves, pixels."""
_NEAR_MM = 25.0
"""Around the nodule noise is measured, in the slices that it touches."""
_PARENCHYMA_HU = (-980, -700)
_LEAST_VOXELS = 50
_MAD = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""


def matched_noise(hu: np.ndarray, result: np.ndarray, place: Place, host: Host) -> np.ndarray:
    """The noise that a nodule lacks beside the lung around it.

    White noise is given what each octave lacks, and is as alike between slices as these overlap. Where the nodule has
    more, nothing is taken away; neither is anything done where no homogeneous lung is near, or the nodule is all edge.

    Args:
        hu: the whole series, without the nodule.
        result: (slices, rows, columns) of the place's box, with it.
        place: of the nodule.
        host: the series.

    Returns:
        Of the box's shape, HU.
    """
    around, inside = surrounding_noise(hu, place, host), nodule_core(place)
    noise = np.zeros(result.shape, np.float32)
    if around is None or inside.sum() < _LEAST_VOXELS:
        return noise
    generator = torch.Generator().manual_seed(place.seed)
    white = torch.randn(result.shape, generator=generator).numpy()
    overlap = round(host.geometry.thickness / float(host.geometry.spacing[0]))
    if overlap > 1:
        white = uniform_filter1d(white, overlap, axis=0) * np.sqrt(overlap)
    for target, own, part in zip(around, octave_deviations(result, inside), _octaves(white)):
        lacking = target**2 - own**2
        if lacking > 0:
            noise += part * np.sqrt(lacking) / part.std()
    return noise


def nodule_core(place: Place) -> np.ndarray:
    """(slices, rows, columns) bool of the place's box: the nodule without its edge, two pixels wide in each slice."""
    in_plane = generate_binary_structure(2, 1)[None]
    return binary_erosion(place.mask >= 0.5, in_plane, iterations=2)


def surrounding_noise(hu: np.ndarray, place: Place, host: Host) -> list[float] | None:
    """Standard deviation of each octave, HU, in homogeneous lung around a place; None where there is too little."""
    reach = np.ceil([0, *(_NEAR_MM / host.geometry.spacing[1:])]).astype(int)
    near = tuple(slice(max(part.start - more, 0), part.stop + more) for part, more in zip(place.box, reach))
    values = hu[near]
    smooth = gaussian_filter(values, (0, _SIGMAS[-1], _SIGMAS[-1]))
    lung = (smooth > _PARENCHYMA_HU[0]) & (smooth < _PARENCHYMA_HU[1])
    inner = tuple(slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(place.box, near))
    lung[inner] &= place.weight == 0
    if lung.sum() < _LEAST_VOXELS:
        return None
    return octave_deviations(values, lung)


def octave_deviations(values: np.ndarray, chosen: np.ndarray) -> list[float]:
    """Standard deviation of each octave of (slices, rows, columns), over the voxels that ``chosen`` (bool) marks."""
    return [_deviation(octave[chosen]) for octave in _octaves(values)]


def _octaves(values: np.ndarray) -> list[np.ndarray]:
    """In-plane detail of (slices, rows, columns), from the finest on."""
    levels = [values, *(gaussian_filter(values, (0, sigma, sigma)) for sigma in _SIGMAS)]
    return [finer - coarser for finer, coarser in pairwise(levels)]


def _deviation(values: np.ndarray) -> float:
    return float(_MAD * np.median(np.abs(values - np.median(values))))
