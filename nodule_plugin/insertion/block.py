"""The samples around a nodule that a source works on, and values carried between them and a series' voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter, spline_filter1d

from nodule_plugin.insertion.host import Geometry

Box = tuple[slice, slice, slice]
"""Slices, rows and columns of a series."""
_ENDS = {"nearest": "nearest", "constant": "mirror"}
"""How a spline goes on beyond the values that it is fitted to, by what lies there."""


@dataclass(frozen=True, eq=False)
class Block:
    """A block of samples at a fixed distance in mm, around a point, along the axes of a series.

    Its axes (depth, height, width) run to the patient's head, back and left as nearly as the series' own do, so that
    nothing is turned by less than a right angle; depth runs along the slices' normal even where the slices are shifted
    against each other.

    Attributes:
        matrix: (4, 4), from (depth, height, width, 1) to the series' (slice, row, column, 1).
        shape: samples along each axis.
        spacing: mm between them.
    """

    matrix: np.ndarray
    shape: tuple[int, int, int]
    spacing: np.ndarray
    geometry: Geometry

    @classmethod
    def around(
        cls, centre: np.ndarray, geometry: Geometry, spacing: tuple[float, float, float], shape: tuple[int, int, int]
    ) -> Block:
        """The block whose middle is a point of the patient.

        Args:
            centre: (x, y, z), mm.
            geometry: of the series.
            spacing: mm between samples, (depth, height, width).
            shape: samples.
        """
        row, column = (geometry.matrix[:3, axis] / np.linalg.norm(geometry.matrix[:3, axis]) for axis in (1, 2))
        turned = abs(row[0]) + abs(column[1]) > abs(row[1]) + abs(column[0])
        back, left = (column, row) if turned else (row, column)
        towards = (np.cross(column, row), 2), (back, 1), (left, 0)  # an axis, and which of z, y and x it runs along
        axes = np.stack([axis * np.sign(axis[along]) for axis, along in towards])
        matrix = np.eye(4)
        matrix[:3, :3] = np.linalg.inv(geometry.matrix[:3, :3]) @ (axes.T * spacing)
        middle = (np.array(shape) - 1) / 2
        matrix[:3, 3] = geometry.to_voxel(centre) - matrix[:3, :3] @ middle
        return cls(matrix, shape, np.array(spacing), geometry)

    def box(self) -> Box:
        """The voxels of the series that the block reaches, cut off at the series' ends."""
        corners = np.stack(np.meshgrid(*([0, size - 1] for size in self.shape), indexing="ij"), -1).reshape(-1, 3)
        places = corners @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        low = np.clip(np.floor(places.min(axis=0)), 0, self.geometry.shape).astype(int)
        high = np.clip(np.ceil(places.max(axis=0)) + 1, 0, self.geometry.shape).astype(int)
        first, second, third = (slice(start, stop) for start, stop in zip(low.tolist(), high.tolist()))
        return first, second, third

    def from_series(self, hu: np.ndarray) -> np.ndarray:
        """A series' values in the block; beyond the series its nearest ones.

        Args:
            hu: (slices, rows, columns).
        """
        # Cubic splines reach far: voxels around the box are taken along.
        around = tuple(slice(max(part.start - 8, 0), part.stop + 8) for part in self.box())
        to_part = self.matrix.copy()
        to_part[:3, 3] -= [part.start for part in around]
        return _sample(hu[around], to_part, self.shape, self.spacing, self.geometry.spacing)

    def to_series(self, values: np.ndarray, box: Box) -> np.ndarray:
        """Values of the block in a box of the series' voxels; 0 beyond the block.

        A voxel takes the mean over the tissue that it shows: as deep as a slice is thick. That is what makes partial
        volumes at a nodule's top and bottom.
        """
        inverse = np.linalg.inv(self.matrix)
        inverse[:3, 3] += inverse[:3, :3] @ [part.start for part in box]
        extent = self.geometry.spacing.copy()
        extent[0] = self.geometry.thickness
        shape = tuple(part.stop - part.start for part in box)
        return _sample(values, inverse, shape, extent, self.spacing, scale=self.geometry.spacing, mode="constant")


def _sample(
    values: np.ndarray,
    matrix: np.ndarray,
    shape: tuple[int, ...],
    extent: np.ndarray,
    pitch: np.ndarray,
    scale: np.ndarray | None = None,
    mode: str = "nearest",
) -> np.ndarray:
    """Means over cells around points that a matrix places in ``values``.

    Args:
        values: to sample, with cubic splines.
        matrix: (4, 4), from a point's indices to those of ``values``.
        shape: of the points.
        extent: mm of a cell along each axis of the points.
        pitch: mm between ``values``: a cell is sampled at least as densely.
        scale: mm between points; None where cells touch.
        mode: what lies beyond ``values``: the nearest of them, or "constant" for 0.
    """
    scale = extent if scale is None else scale
    counts = np.maximum(np.ceil(extent / pitch - 1e-6).astype(int), 1)
    parts = [((np.arange(count) + 0.5) / count - 0.5) * reach for count, reach in zip(counts, extent / scale)]
    turn, start = matrix[:3, :3], matrix[:3, 3]
    along = np.abs(turn).argmax(axis=1)  # for each axis of the values, that of the points which moves along it most
    alone = turn[range(3), along]
    if np.allclose(np.abs(turn).sum(axis=1), np.abs(alone), rtol=0, atol=1e-9):
        # Nothing is sheared, as a tilted gantry does it: axis by axis is the same sum in a hundredth of the time.
        for axis, (own, step) in enumerate(zip(along.tolist(), alone.tolist())):
            places = step * (np.arange(shape[own])[:, None] + parts[own]) + start[axis]
            means = _spline_weights(places, values.shape[axis], mode).mean(axis=1)
            values = np.moveaxis(np.tensordot(means, values, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(values.transpose(np.argsort(along)), dtype=np.float32)
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(float)
    spline = spline_filter(values, order=3, mode=_ENDS[mode])
    total = np.zeros(shape)
    for shift in np.stack(np.meshgrid(*parts, indexing="ij"), -1).reshape(-1, 3):
        places = np.tensordot(turn, indices + shift[:, None, None, None], axes=1) + start[:, None, None, None]
        total += _interpolated(spline, places, mode)
    return (total / counts.prod()).astype(np.float32)


def _spline_weights(places: np.ndarray, size: int, mode: str) -> np.ndarray:
    """(..., size) what each of so many values along an axis counts at places on it."""
    splines = spline_filter1d(np.eye(size), order=3, axis=1, mode=_ENDS[mode])
    return np.stack([_interpolated(spline, places[None], mode) for spline in splines], axis=-1)


def _interpolated(spline: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    return map_coordinates(spline, places, order=3, mode=mode, prefilter=False)
