"""The sampling grid of a phantom, and the smooth random fields drawn on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Grid:
    """A block of a scan's pixel grid, finer than the scan's pixels by a whole factor, around a nodule.

    Arrays on it have the axes (slice, row, column).

    Attributes:
        first: (row, column) of the block's first pixel in the scan.
        shape: (rows, columns) in the scan's pixels.
        spacing: mm between the scan's pixels.
        factor: samples per pixel along rows and columns.
        z: positions of the slices, mm, ascending.
        slice_spacing: mm between slices.
        centre: (row, column) of the nodule in the scan's pixels; origin of the coordinates in mm.
        centre_z: the nodule's z, mm; origin likewise.
    """

    first: tuple[int, int]
    shape: tuple[int, int]
    spacing: float
    factor: int
    z: np.ndarray
    slice_spacing: float
    centre: tuple[float, float]
    centre_z: float

    @property
    def pitch(self) -> float:
        """Distance between samples within a slice, mm."""
        return self.spacing / self.factor

    @property
    def samples(self) -> tuple[int, int, int]:
        """Shape of arrays on the grid."""
        return len(self.z), self.shape[0] * self.factor, self.shape[1] * self.factor

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distances from the nodule's centre along (slice, row, column), mm."""
        rows, columns = (
            (first - 0.5 + (np.arange(count * self.factor) + 0.5) / self.factor - centre) * self.spacing
            for first, count, centre in zip(self.first, self.shape, self.centre)
        )
        return (self.z - self.centre_z).astype(np.float32), rows.astype(np.float32), columns.astype(np.float32)

    @property
    def open_axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:attr:`axes` shaped to broadcast against each other."""
        z, rows, columns = self.axes
        return z[:, None, None], rows[None, :, None], columns[None, None, :]

    def to_indices(self, points: np.ndarray) -> np.ndarray:
        """Array indices, not rounded, of points in mm from the nodule's centre.

        Args:
            points: (..., 3) in the order slice, row, column.
        """
        z, rows, columns = self.axes
        origin = np.array([z[0], rows[0], columns[0]])
        return (points - origin) / np.array([self.slice_spacing, self.pitch, self.pitch])

    def bin_down(self, volume: np.ndarray) -> np.ndarray:
        """Mean over each of the scan's pixels: (slices, rows, columns) in the scan's pixels."""
        slices = len(volume)
        blocks = volume.reshape(slices, self.shape[0], self.factor, self.shape[1], self.factor)
        return blocks.mean(axis=(2, 4))


def smooth_noise(grid: Grid, length_mm: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian random field of zero mean and about unit variance that varies over ``length_mm``.

    White noise on a coarse grid, interpolated by quadratic B-splines: far cheaper than filtering at full resolution.

    Returns:
        float32 (slices, rows, columns).
    """
    weights = [_spline_weights(axis / length_mm) for axis in grid.axes]
    coarse = rng.standard_normal([matrix.shape[1] for matrix in weights]).astype(np.float32)
    along_z = np.tensordot(weights[0], coarse, axes=(1, 0))
    along_rows = np.matmul(weights[1], along_z)
    # 0.41: mean standard deviation after three splines.
    return np.matmul(along_rows, weights[2].T / np.float32(0.41))


def _spline_weights(positions: np.ndarray) -> np.ndarray:
    """(len(positions), knots) weights of a quadratic B-spline with knots one unit apart."""
    knots = np.arange(np.floor(positions.min()) - 1, np.ceil(positions.max()) + 2)
    distance = np.abs(positions[:, None] - knots[None, :])
    inner = 0.75 - distance**2
    outer = 0.5 * (1.5 - distance) ** 2
    return np.where(distance < 0.5, inner, np.where(distance < 1.5, outer, 0)).astype(np.float32)


def soft_step(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """0 far below zero, 1 far above, rising over about ``width``."""
    return 0.5 + 0.5 * np.tanh(2 * distance / width)
