"""Whether values can be Hounsfield units: what is certain, and what is only doubtful."""

from __future__ import annotations

import numpy as np

LUNG_HU = (-1024, -500)
"""Between these are lung and air, and not what lies outside the scanner's field of view."""
LEAST_LUNG = 0.02
"""Fraction of lung in a crop around a lung nodule; the least of 838 real ones has 0.13."""


def not_hounsfield(voxels: np.ndarray) -> str | None:
    """Why the values cannot be Hounsfield units of a lung nodule and what is around it; None where they can.

    Lung is about -850 HU and air -1,000: where nothing is below 0, something else was stored.
    """
    if not np.isfinite(voxels).all():
        return f"{np.count_nonzero(~np.isfinite(voxels)):,} of its voxels are not finite; correct them"
    low, high = voxels.min(), voxels.max()
    if low < 0 and (low < -1 or high > 1):
        return None
    if high <= 1:
        what = "as images scaled for a network have"
    elif high <= 255:
        what = "as pictures of 8 bits have"
    else:
        what = "as stored values have before the rescale intercept, -1,024 in most of LIDC-IDRI, is added"
    return f"its values run from {low:g} to {high:g}, {what}; give Hounsfield units (air -1,000, water 0)"


def doubts_of_values(voxels: np.ndarray) -> list[str]:
    """What makes it doubtful that the values are Hounsfield units of a lung nodule and what is around it."""
    doubts = []
    if np.mean((voxels > LUNG_HU[0]) & (voxels < LUNG_HU[1])) < LEAST_LUNG:
        doubts.append(f"hardly a voxel as dark as lung (between {LUNG_HU[0]:,} and {LUNG_HU[1]} HU)")
    if np.median(voxels) < -1100:
        doubts.append("mostly voxels darker than air (-1,000 HU): an intercept that was added twice?")
    if voxels.min() == voxels.max():
        doubts.append("one value throughout")
    return doubts
