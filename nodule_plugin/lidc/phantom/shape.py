"""The nodule's shape: its readers' outlines as one signed distance, bent so that the shape ratings can be seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter

from nodule_plugin.findings import Findings
from nodule_plugin.lidc.phantom.grid import Grid, smooth_noise
from nodule_plugin.lidc.records import Annotation

ASPECT_RANGE = {5: (1.0, 1.22), 4: (1.12, 1.45), 3: (1.35, 1.8), 2: (1.6, 2.3), 1: (2.1, 4.0)}
"""Sphericity -> the ratio of long to short axis, in plane, that shows it."""

LOBE_DEPTH = {None: 0.0, 1: 0.0, 2: 0.08, 3: 0.17, 4: 0.27, 5: 0.38}
"""Lobulation -> depth of the notches between lobes, in nodule radii."""


def outline_points(cluster: Sequence[Annotation]) -> np.ndarray:
    """(n, 2) row and column of all outline points that bound the nodule from outside."""
    return np.concatenate([c.points for a in cluster for c in a.contours if c.inclusion]).astype(float)


def shape_transform(cluster: Sequence[Annotation], findings: Findings) -> np.ndarray:
    """(2, 2) matrix on (row, column) offsets from the nodule's centre that makes its sphericity seen.

    The outlines of some nodules contradict their sphericity. Those are stretched along the outlines' own short axis,
    just as far as :data:`ASPECT_RANGE` asks; all others keep their shape.
    """
    points = outline_points(cluster)
    offsets = points - points.mean(axis=0)
    # A third of a pixel squared: a pixel's own extent, so that a single point has the shape of a pixel.
    values, vectors = np.linalg.eigh(offsets.T @ offsets / len(points) + 0.3 * np.eye(2))
    aspect = float(np.sqrt(values[1] / values[0]))
    low, high = ASPECT_RANGE[findings.sphericity]
    stretch = aspect / np.clip(aspect, low, high)
    return vectors @ np.diag([stretch, 1.0]) @ vectors.T


def signed_distance(cluster: Sequence[Annotation], grid: Grid, transform: np.ndarray) -> np.ndarray:
    """Distance to the outline on which half of the readers agree, mm, positive inside.

    Returns:
        float32 (slices, rows, columns).
    """
    agreement = np.mean([_fill(annotation, grid, transform) for annotation in cluster], axis=0)
    agreement = gaussian_filter(agreement, (0, 0.35 * grid.factor, 0.35 * grid.factor))
    inside = agreement >= min(0.5, 0.99 * agreement.max())
    near = tuple(_grown_range(inside, axis, grid) for axis in range(3))
    sampling = (grid.slice_spacing, grid.pitch, grid.pitch)
    exact = distance_transform_edt(inside[near], sampling) - distance_transform_edt(~inside[near], sampling)
    distance = np.full(grid.samples, min(float(exact.min()), -1.0), dtype=np.float32)
    distance[near] = gaussian_filter(exact.astype(np.float32), (0, 0.6 * grid.factor, 0.6 * grid.factor))
    return distance


def _grown_range(inside: np.ndarray, axis: int, grid: Grid) -> slice:
    """The nodule's extent along an axis, grown by half of it: farther out distances need not be exact."""
    touched = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
    margin = 1 + (len(touched) // 2 if axis == 0 else max(len(touched) // 2, round(3 / grid.pitch)))
    return slice(max(touched[0] - margin, 0), touched[-1] + margin + 1)


def _fill(annotation: Annotation, grid: Grid, transform: np.ndarray) -> np.ndarray:
    """1 within a reader's outlines, 0 elsewhere."""
    slices, rows, columns = grid.samples
    filled = np.zeros((slices, rows, columns), dtype=np.float32)
    for contour in sorted(annotation.contours, key=lambda contour: not contour.inclusion):
        index = int(np.abs(grid.z - contour.z).argmin())
        if abs(grid.z[index] - contour.z) > 0.51 * grid.slice_spacing:
            continue
        offsets = (contour.points - np.asarray(grid.centre)) @ transform.T + np.asarray(grid.centre)
        samples = (offsets - np.asarray(grid.first) + 0.5) * grid.factor - 0.5
        canvas = Image.new("1", (columns, rows))
        outline = [(float(column), float(row)) for row, column in samples]
        if len(outline) == 1:
            (column, row), reach = outline[0], grid.factor
            ImageDraw.Draw(canvas).ellipse([column - reach, row - reach, column + reach, row + reach], fill=1)
        else:
            ImageDraw.Draw(canvas).polygon(outline, fill=1, outline=1)
        region = np.asarray(canvas)
        filled[index][region] = 1.0 if contour.inclusion else 0.0
    return filled


def add_lobes(distance: np.ndarray, grid: Grid, findings: Findings, rng: np.random.Generator) -> np.ndarray:
    """Round bulges with notches between them, as deep as the lobulation rating asks."""
    depth = LOBE_DEPTH[findings.lobulation]
    if depth == 0:
        return distance
    z, rows, columns = grid.open_axes
    lobes = rng.integers(4, 7)
    angle = np.arctan2(rows, columns) + 0.25 * smooth_noise(grid, 8.0, rng)
    phase = rng.uniform(0, 2 * np.pi) + 0.15 * z
    # |cos| is round at its crests and sharp in its troughs, as lobes and the notches between them are.
    profile = np.abs(np.cos(0.5 * lobes * angle + phase)) ** 0.8 - 0.75
    centre_fade = np.clip(np.hypot(rows, columns) / radius_of(distance), 0, 1)
    return (distance + depth * radius_of(distance) * profile * centre_fade).astype(np.float32)


def radius_of(distance: np.ndarray) -> float:
    """Radius of the largest ball within the shape, mm (at least 0.5)."""
    return max(float(distance.max()), 0.5)
