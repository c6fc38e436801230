"""Which annotations are readings of the same nodule.

LIDC's readers named their nodules independently. Annotations are taken to be of one nodule when their outlines touch or
nearly so; the rule and its numbers are those of pylidc's ``Scan.cluster_annotations``, the results are equal.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.geometry import voxels
from nodule_plugin.lidc.records import Annotation, Scan

MOST_READERS = 4
"""Readers of a scan: a larger group means that neighbouring nodules were joined."""
SHRINKING, LEAST_TOLERANCE = 0.9, 0.1
"""What the tolerance is multiplied by while a group is too large, and where that ends."""


def cluster_annotations(scan: Scan) -> list[list[Annotation]]:
    """Group a scan's annotations by nodule.

    Two annotations are neighbours when the least distance between their outline points, in *voxel indices* (row,
    column, slice), is at most the slice thickness in mm: a mix of units, kept because published counts rest on it.
    Groups are the connected components. While any group has more than four annotations the tolerance is multiplied by
    :data:`SHRINKING` and the grouping repeated, until it would fall below :data:`LEAST_TOLERANCE`; then larger groups
    stay.

    Args:
        scan: must know its slice thickness and the positions of its slices.

    Returns:
        Groups by ascending slice, annotations in the scan's order within a group.

    Raises:
        InputError: if the scan lacks slice thickness or positions.
    """
    if not scan.annotations:
        return []
    if not scan.slice_z or not np.isfinite(scan.slice_thickness):
        raise InputError(
            f"series {scan.series_instance_uid}: slice thickness and positions are needed to group annotations"
        )
    points = [voxels(annotation, scan) for annotation in scan.annotations]
    tolerance = scan.slice_thickness
    distances = _least_distances(points, tolerance)
    labels = _components(distances, tolerance)
    while np.bincount(labels).max() > MOST_READERS:
        tolerance *= SHRINKING
        if tolerance < LEAST_TOLERANCE:
            break
        labels = _components(distances, tolerance)
    mean_slices = np.array([group[:, 2].mean() for group in points])
    order = sorted(range(labels.max() + 1), key=lambda label: float(np.mean(mean_slices[labels == label])))
    return [[scan.annotations[index] for index in np.flatnonzero(labels == label)] for label in order]


def _components(distances: np.ndarray, tolerance: float) -> np.ndarray:
    return connected_components(distances <= tolerance, directed=False)[1]


def _least_distances(points: list[np.ndarray], limit: float) -> np.ndarray:
    """Least distance between the points of each pair of groups; infinite where it is above ``limit``.

    Most pairs are far apart and are ruled out by their bounding boxes. For the others a search tree over the larger
    group is asked for the nearest neighbour of each point of the smaller one.
    """
    lowest = np.array([group.min(axis=0) for group in points])
    highest = np.array([group.max(axis=0) for group in points])
    gaps = np.maximum(lowest[:, None] - highest[None, :], 0)
    gaps = np.maximum(gaps, gaps.transpose(1, 0, 2))
    near = (gaps**2).sum(axis=-1) <= limit**2
    distances = np.full(near.shape, np.inf)
    np.fill_diagonal(distances, 0)
    trees: dict[int, cKDTree] = {}
    for first, second in combinations(range(len(points)), 2):
        if not near[first, second]:
            continue
        small, large = sorted((first, second), key=lambda index: len(points[index]))
        if large not in trees:
            trees[large] = cKDTree(points[large])
        distances[first, second] = distances[second, first] = trees[large].query(points[small])[0].min()
    return distances
