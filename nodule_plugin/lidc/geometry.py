"""Measures of a reader's outlines: size, centre, volume. Definitions are pylidc's, so that results can be compared.

They are plain geometry of the outline points, whether these mark the nodule or a hole in it, except where stated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from nodule_plugin.lidc.records import Annotation, Contour, Scan

_FEW_POINTS = 500
"""Whose distances from each other are faster than a hull; LIDC-IDRI's longest contour has 311."""


def slice_indices(z: Sequence[float] | np.ndarray, slice_z: Sequence[float]) -> np.ndarray:
    """Index of the slice nearest to each position; the lower one of two equally near.

    Args:
        z: positions, mm.
        slice_z: positions of the scan's slices, mm, ascending, at least one.

    Returns:
        int array as long as ``z``.
    """
    return np.abs(np.asarray(slice_z)[None, :] - np.asarray(z)[:, None]).argmin(axis=1)


def voxels(annotation: Annotation, scan: Scan) -> np.ndarray:
    """All outline points of an annotation as voxel indices.

    Returns:
        (n, 3) int array of (row, column, slice).
    """
    indices = slice_indices([contour.z for contour in annotation.contours], scan.slice_z)
    lengths = [len(contour.points) for contour in annotation.contours]
    points = np.concatenate([contour.points for contour in annotation.contours])
    return np.column_stack([points, np.repeat(indices, lengths)])


def centroid(annotation: Annotation, scan: Scan) -> np.ndarray:
    """Mean of all outline points.

    Returns:
        (row, column, slice), not rounded.
    """
    return voxels(annotation, scan).mean(axis=0)


def diameter(annotation: Annotation, scan: Scan) -> float:
    """The greatest distance between two outline points of the same contour, mm.

    Returns:
        0 where every contour is a single point (pylidc: minus infinity).
    """
    return max(_contour_diameter(contour) for contour in annotation.contours) * scan.pixel_spacing


def _contour_diameter(contour: Contour) -> float:
    points = contour.points if len(contour.points) <= _FEW_POINTS else _corners(contour.points)
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _corners(points: np.ndarray) -> np.ndarray:
    """The corners of the points' convex hull, among which the two that are farthest apart always are."""
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:  # all on one line: its ends
        return points[np.lexsort(points.T)][[0, -1]]


def mean_z(annotation: Annotation) -> float:
    """Mean position of all outline points, mm: the centroid's z, whatever the distances between slices."""
    lengths = [len(contour.points) for contour in annotation.contours]
    return float(np.average([contour.z for contour in annotation.contours], weights=lengths))


def centre_in_slice(annotations: Sequence[Annotation], z: float) -> tuple[float, float] | None:
    """Where a nodule's centre lies in one slice: the mean of its readers' centres of area.

    Args:
        annotations: the nodule's.
        z: position of the slice, mm; contours within 0.01 mm of it count.

    Returns:
        (row, column), not rounded; None where no reader outlined the nodule in this slice.
    """
    centres = []
    for annotation in annotations:
        here = [contour for contour in annotation.contours if contour.inclusion and abs(contour.z - z) < 0.01]
        if here:
            areas = [contour_area(contour) for contour in here]
            # A single point or a line has no area: then each contour counts alike.
            weights = areas if sum(areas) > 0 else None
            centres.append(np.average([_contour_centre(contour) for contour in here], axis=0, weights=weights))
    if not centres:
        return None
    row, column = np.mean(centres, axis=0)
    return float(row), float(column)


def _contour_centre(contour: Contour) -> np.ndarray:
    """Centre of the area within a contour, or the mean of its points where it has no area."""
    origin = contour.points[0]
    row, column = (contour.points - origin).T.astype(float)
    following_row, following_column = np.roll(row, -1), np.roll(column, -1)
    cross = row * following_column - following_row * column
    if cross.sum() == 0:
        return contour.points.mean(axis=0)
    centre = np.array([((row + following_row) * cross).sum(), ((column + following_column) * cross).sum()])
    return origin + centre / (3 * cross.sum())


def volume(annotation: Annotation, scan: Scan) -> float:
    """Sum of the outlined areas, holes subtracted, each times half the distance between its neighbours, mm3.

    Neighbours are the annotation's own next outlined positions; the first and the last take the distance to their only
    neighbour, and an annotation in a single slice the slice thickness.
    """
    z = np.unique([contour.z for contour in annotation.contours])
    if len(z) == 1:
        extents = np.array([scan.slice_thickness])
    else:
        padded = np.concatenate([[2 * z[0] - z[1]], z, [2 * z[-1] - z[-2]]])
        extents = (padded[2:] - padded[:-2]) / 2
    return sum(
        (1 if contour.inclusion else -1)
        * contour_area(contour)
        * scan.pixel_spacing**2
        * float(extents[np.searchsorted(z, contour.z)])
        for contour in annotation.contours
    )


def contour_area(contour: Contour) -> float:
    """The area that a contour's points enclose (shoelace formula), in pixels."""
    row, column = contour.points.T
    return 0.5 * abs(float(row @ np.roll(column, 1) - column @ np.roll(row, 1)))
