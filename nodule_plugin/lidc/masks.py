"""Readers' outlines as masks, and the mask on which enough of a nodule's readers agree; equal to pylidc's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.path import Path as Outline

from nodule_plugin.lidc.geometry import slice_indices, voxels
from nodule_plugin.lidc.records import Annotation, Scan

Box = tuple[slice, slice, slice]
"""(slices, rows, columns) of a scan."""


def consensus_mask(annotations: Sequence[Annotation], scan: Scan, level: float = 0.5) -> tuple[np.ndarray, Box]:
    """The voxels that at least a fraction of a nodule's readers outlined (pylidc's ``utils.consensus``).

    A reader's nodule is what lies within the outlines without their own points, which are the first voxels outside
    it; what lies within an outline of exclusion is a hole, that outline's points included.

    Args:
        annotations: of one nodule, at least one.
        scan: theirs.
        level: the fraction.

    Returns:
        (slices, rows, columns) bool, and where in the scan that box lies: the extent of all outline points.
    """
    points = np.concatenate([voxels(annotation, scan) for annotation in annotations])
    low, high = points.min(axis=0), points.max(axis=0) + 1
    row, column, index = (slice(int(start), int(stop)) for start, stop in zip(low, high))
    box = (index, row, column)
    return np.mean([_mask(annotation, scan, box) for annotation in annotations], axis=0) >= level, box


def _mask(annotation: Annotation, scan: Scan, box: Box) -> np.ndarray:
    shape = tuple(part.stop - part.start for part in box)
    mask = np.zeros(shape, dtype=bool)
    corner = np.array([box[1].start, box[2].start])
    pixels = np.moveaxis(np.indices(shape[1:]), 0, -1).reshape(-1, 2)
    # Holes come last, whichever outline the reader drew first.
    for contour in sorted(annotation.contours, key=lambda contour: not contour.inclusion):
        plane = mask[int(slice_indices([contour.z], scan.slice_z)[0]) - box[0].start]
        points = contour.points - corner
        closed = points if (points[0] == points[-1]).all() else np.concatenate([points, points[:1]])
        within = Outline(closed, closed=True).contains_points(pixels).reshape(shape[1:])
        plane[:] = plane | within if contour.inclusion else plane & ~within
        plane[tuple(points.T)] = False
    return mask
