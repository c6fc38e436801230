"""Outlines of nodules drawn by their ratings, and their diameter.

The generator is stated, not learnt: an ellipsoid whose axes follow sphericity, with lobes (wide bumps) by lobulation,
spicules (needles that taper) by spiculation, slight waves always, and an edge that is the wider the less defined the
margin is. The surface is a distance from the centre for each direction, so that the nodule is one piece.
"""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings

FINER = 2
"""Points along each side of a voxel at which the outline is looked at."""
ASPECT = {1: 0.45, 2: 0.55, 3: 0.67, 4: 0.8, 5: 0.93}
"""Shortest by longest axis of the ellipsoid, by sphericity; drawn within 0.05 of it."""
TILT = math.radians(30)
"""Greatest angle between the longest axis and a slice, within which the diameter is measured."""
LOBES, LOBE_HEIGHT, LOBE_SHARPNESS = 6, 0.09, 7.0
"""How many, how high in radii for each step of lobulation, and how narrow: a lobe falls to 1/e within 44 degrees."""
SPICULES, SPICULE_LENGTH, SPICULE_SHARPNESS = 5, 0.08, 70.0
"""For each step of spiculation so many, and so long in radii; a spicule falls to 1/e within 14 degrees."""
WAVES, WAVE_HEIGHT = 12, 0.03
"""Of every surface, in radii."""
EDGE_MM = 0.5
"""Width of the edge for each step that the margin is below sharp."""
REACH = 1.5
"""Diameters from the centre beyond which no nodule reaches."""
TOLERANCE, TOLERANCE_VOXELS = 0.01, 0.1
"""Of the diameter: a fraction of it or of a voxel, whichever is more."""


def draw_mask(
    findings: Findings,
    diameter_mm: float,
    spacing_mm: tuple[float, float, float],
    shape: tuple[int, int, int],
    generator: torch.Generator,
) -> np.ndarray:
    """A nodule's mask in the middle of an array.

    Args:
        findings: sphericity, margin, spiculation and lobulation (none where it was not rated) count.
        diameter_mm: the longest within a slice, see :func:`longest_diameter_mm`; what comes has it to within 1 %, or
            a tenth of a voxel where that is more.
        spacing_mm: (z, y, x).
        shape: (D, H, W) of the result.
        generator: on the CPU; decides all that is random.

    Returns:
        (D, H, W) float32, the fraction of each voxel that is nodule, 0 to 1.

    Raises:
        InputError: if the diameter is not above 0, or the nodule would reach the array's edge.
    """
    if not 0 < diameter_mm < math.inf:
        raise InputError(f"diameter_mm: a number above 0 is needed, not {diameter_mm}")
    points = _points(spacing_mm, shape)
    distance = np.linalg.norm(points, axis=1)
    draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    near = distance <= REACH * diameter_mm
    surface = _surface(findings, points[near] / np.maximum(distance[near], 1e-6)[:, None], draw)
    edge_mm = min(EDGE_MM * (5 - findings.margin), diameter_mm / 4) + min(spacing_mm) / FINER
    least, most = 0.0, REACH * diameter_mm
    tolerance = max(TOLERANCE * diameter_mm, TOLERANCE_VOXELS * min(spacing_mm[1:]))
    for _ in range(16):
        radius = (least + most) / 2
        filled = np.zeros(len(points), np.float32)
        filled[near] = np.clip(0.5 + (radius * surface - distance[near]) / edge_mm, 0, 1)
        mask = filled.reshape([size for count in shape for size in (count, FINER)]).mean((1, 3, 5))
        measured = longest_diameter_mm(mask, spacing_mm)
        if abs(measured - diameter_mm) <= tolerance:
            break
        least, most = (radius, most) if measured < diameter_mm else (least, radius)
    if _reaches_the_edge(mask):
        extent = " x ".join(f"{count * step:.0f}" for count, step in zip(shape, spacing_mm))
        raise InputError(f"diameter_mm: {diameter_mm:g} mm does not fit into {extent} mm; give a smaller nodule")
    return mask


def _surface(findings: Findings, directions: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Distance of a nodule's surface from its centre towards (P, 3) directions, in radii, (P,) float32."""
    shortest = ASPECT[findings.sphericity] + draw.uniform(-0.05, 0.05)
    axes = np.array([1, draw.uniform(shortest, 1), shortest], np.float32)
    angle, tilt = draw.uniform(0, 2 * math.pi), draw.uniform(-TILT, TILT)
    longest = math.sin(tilt), math.cos(tilt) * math.cos(angle), math.cos(tilt) * math.sin(angle)
    attitude = np.linalg.qr(np.column_stack([longest, draw.normal(size=(3, 2))]))[0].astype(np.float32)
    surface = 1 / np.linalg.norm((directions @ attitude) / axes, axis=1)
    lobulation, spiculation = (findings.lobulation or 1) - 1, findings.spiculation - 1
    for count, height, sharpness in (
        (WAVES, WAVE_HEIGHT, LOBE_SHARPNESS),
        (LOBES, LOBE_HEIGHT * lobulation, LOBE_SHARPNESS),
        (SPICULES * spiculation, SPICULE_LENGTH * spiculation, SPICULE_SHARPNESS),
    ):
        for _ in range(count):
            towards = draw.normal(size=3)
            towards = (towards / np.linalg.norm(towards)).astype(np.float32)
            surface += np.float32(height * draw.uniform(0.5, 1.5)) * np.exp(sharpness * (directions @ towards - 1))
    return surface


def _points(spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """Where the array is looked at, :data:`FINER` points a voxel and axis: (P, 3) mm from its middle, (z, y, x)."""
    axes = [
        (np.arange(count * FINER, dtype=np.float32) - (count * FINER - 1) / 2) * np.float32(step / FINER)
        for count, step in zip(shape, spacing_mm)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _reaches_the_edge(mask: np.ndarray) -> bool:
    inside = mask[1:-1, 1:-1, 1:-1] if mask.shape[0] > 1 else mask[:, 1:-1, 1:-1]
    return bool((mask >= 0.5).sum() > (inside >= 0.5).sum())


def longest_diameter_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """The longest distance between two points of a nodule's outline within one slice.

    So LIDC's readers' outlines are measured, and so RECIST measures (Eisenhauer et al., Eur J Cancer 2009;45:228-247).
    The outline runs where the fraction of nodule, taken linearly between voxels' centres, is one half.

    Args:
        mask: (D, H, W), the fraction of each voxel that is nodule, 0 to 1.
        spacing_mm: (z, y, x).

    Returns:
        0 where no voxel is half filled.
    """
    longest = 0.0
    for plane in mask:
        if (plane >= 0.5).any():
            longest = max(longest, _greatest_distance(_outline(np.pad(plane, 1)) * np.array(spacing_mm[1:])))
    return longest


def _outline(plane: np.ndarray) -> np.ndarray:
    """Where a plane crosses one half along its rows and columns, (P, 2) in voxels."""
    points = []
    for axis in (0, 1):
        before, after = (np.delete(plane, index, axis) for index in (-1, 0))
        at = np.argwhere((before >= 0.5) != (after >= 0.5))
        start, end = before[tuple(at.T)], after[tuple(at.T)]
        crossing = at.astype(float)
        crossing[:, axis] += (0.5 - start) / (end - start)
        points.append(crossing)
    return np.concatenate(points)


def _greatest_distance(points: np.ndarray) -> float:
    with suppress(QhullError):  # of a few points on a line all are few enough
        points = points[ConvexHull(points).vertices]
    return float(pdist(points).max())
