"""Where a nodule's region of interest (ROI) lies in its slice: the one rule that everything which crops follows."""

from __future__ import annotations

import math

Bounds = tuple[int, int, int, int]


def roi_bounds(centre: tuple[float, float], spacing: tuple[float, float], roi_mm: float) -> Bounds:
    """The pixels of a ROI of ``roi_mm`` by ``roi_mm`` around ``centre``.

    Along each axis the side is ``roi_mm / spacing`` rounded to whole pixels (half up, at least 1), placed so that the
    middle of the pixels lies nearest to the centre (half towards the higher index).

    Args:
        centre: (row, column) in pixels; pixel centres are whole numbers.
        spacing: (row, column) distance between pixels, mm.
        roi_mm: side of the ROI, mm.

    Returns:
        (row_start, row_stop, column_start, column_stop), stops exclusive. They may lie beyond the image.
    """
    bounds: list[int] = []
    for middle, step in zip(centre, spacing):
        side = max(1, math.floor(roi_mm / step + 0.5))
        start = math.floor(middle - (side - 1) / 2 + 0.5)
        bounds += [start, start + side]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def padding_fraction(bounds: Bounds, shape: tuple[int, int]) -> float:
    """The fraction of a ROI's area that lies beyond the image.

    Args:
        bounds: as :func:`roi_bounds` gives them.
        shape: (rows, columns) of the image.

    Returns:
        0 where the ROI lies wholly inside, 1 where it lies wholly outside.
    """
    row_start, row_stop, column_start, column_stop = bounds
    rows = max(0, min(row_stop, shape[0]) - max(row_start, 0))
    columns = max(0, min(column_stop, shape[1]) - max(column_start, 0))
    return 1 - rows * columns / ((row_stop - row_start) * (column_stop - column_start))
