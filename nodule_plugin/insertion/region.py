"""Which voxels an inpainting model may paint."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

NODULE = 0.1
"""From this fraction on a voxel holds nodule."""
MARGIN_MM = 2.5
"""Painted around the nodule in each slice: readers draw outlines inside halos and between spicules."""


def painted_region(nodule: np.ndarray, spacing_mm: tuple[float, float, float], margin_mm: float) -> np.ndarray:
    """The nodule and what is around it, in the slices that it touches.

    Slices above and below stay as they are: the crops that a model learns from end there.

    Args:
        nodule: (D, H, W) fractions of voxels, 0 to 1.
        spacing_mm: (z, y, x).
        margin_mm: distance from the nodule, in each slice.

    Returns:
        (D, H, W) bool.
    """
    region = np.zeros(nodule.shape, bool)
    for painted, plane in zip(region, nodule):
        if (plane >= NODULE).any():
            painted[:] = distance_transform_edt(plane < NODULE, sampling=spacing_mm[1:]) <= margin_mm
    return region
