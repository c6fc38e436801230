"""The inpainting model's own grid: a block of voxels of fixed size in mm, whatever the scanner's are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from PIL import Image

from nodule_plugin.data.transforms import KERNELS
from nodule_plugin.data.window import checked_window
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.settings import whole_number

Triple = tuple[float, float, float]
"""(slice, row, column)."""


@dataclass(frozen=True)
class Grid:
    """A block of voxels that a model sees at once.

    Args:
        spacing_mm: (z, y, x) between voxel centres.
        shape: (D, H, W).
        window_hu: (lower, upper) end; becomes -1 and 1.
        kernel: of the resampling, a name in :data:`nodule_plugin.data.transforms.KERNELS`.

    Attributes:
        chain: name and version of what makes its voxels, as :func:`nodule_plugin.data.transforms.chain_id` for ROIs.

    Raises:
        InputError: if a number makes no sense.
    """

    spacing_mm: Triple
    shape: tuple[int, int, int]
    window_hu: tuple[float, float]
    kernel: str = "cubic"
    chain: str = field(default="", init=False)

    def __post_init__(self) -> None:
        for name, given in (("grid_spacing_mm", self.spacing_mm), ("grid_shape", self.shape)):
            if len(given) != 3 or not all(0 < number < math.inf for number in given):
                raise InputError(f"{name}: three numbers above 0 (z, y, x) are needed, not {given!r}")
        depth, rows, columns = (whole_number("grid_shape", number) for number in self.shape)
        z, y, x = (float(step) for step in self.spacing_mm)
        for name, value in (
            ("shape", (depth, rows, columns)),
            ("spacing_mm", (z, y, x)),
            ("window_hu", checked_window(self.window_hu)),
            ("chain", f"grid-{self.kernel}-1"),
        ):
            object.__setattr__(self, name, value)

    @property
    def extent_mm(self) -> Triple:
        """(z, y, x) from edge to edge."""
        z, y, x = (count * step for count, step in zip(self.shape, self.spacing_mm))
        return z, y, x


def on_grid(
    volume: np.ndarray, spacing_mm: Sequence[float], centre: Sequence[float], grid: Grid, kernel: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A volume resampled to a grid, as far as the volume reaches.

    Along each axis by Pillow's kernel, which is widened to a low-pass where voxels grow; where the volume ends, its
    outermost voxels go on by up to half a voxel of the grid.

    Args:
        volume: (slices, rows, columns) float32.
        spacing_mm: (z, y, x) of the volume.
        centre: (slice, row, column) of the volume where the grid's centre lies; fractions count.
        grid: to resample to.
        kernel: the grid's own by default.

    Returns:
        (D, H, W) float32, 0 where the volume does not reach, and (D, H, W) bool, True where it does: at every voxel
        whose centre lies in the volume.
    """
    values, known = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, bool)
    steps = [new / old for new, old in zip(grid.spacing_mm, spacing_mm)]
    spans = [_span(*numbers) for numbers in zip(volume.shape, steps, centre, grid.shape)]
    if any(first >= last for first, last, _, _ in spans):
        return values, known
    margins = [math.ceil(step / 2) for step in steps]
    padded = np.pad(volume, [(margin, margin) for margin in margins], mode="edge")
    (_, _, above, below), (_, _, top, bottom), (_, _, left, right) = (
        (first, last, low + margin, high + margin) for (first, last, low, high), margin in zip(spans, margins)
    )
    depth, rows, columns = (last - first for first, last, _, _ in spans)
    chosen = KERNELS[kernel or grid.kernel]
    planes = [Image.fromarray(plane).resize((columns, rows), chosen, (left, top, right, bottom)) for plane in padded]
    stack = np.stack([np.asarray(plane).ravel() for plane in planes])
    through = Image.fromarray(stack).resize((rows * columns, depth), chosen, (0, above, rows * columns, below))
    place = tuple(slice(first, last) for first, last, _, _ in spans)
    values[place] = np.asarray(through).reshape(depth, rows, columns)
    known[place] = True
    return values, known


def _span(size: int, step: float, centre: float, count: int) -> tuple[int, int, float, float]:
    """The grid's voxels along an axis whose centres lie in the volume (first, last + 1), and their edges there.

    Edges count from the first voxel's outer edge, in voxels of the volume.
    """
    low = centre + 0.5 - count / 2 * step
    first = max(0, math.ceil(-low / step - 0.5))
    last = min(count, math.floor((size - low) / step - 0.5) + 1)
    return first, last, low + first * step, low + last * step


def read_grid(file: str | Path) -> Grid:
    """The grid in a file: a JSON object with the fields of :class:`Grid`, and others.

    Raises:
        InputError: if the file is missing or damaged.
    """
    content = read_json(Path(file), "restore it, or train an inpainting model")
    try:
        return Grid(**{each.name: content[each.name] for each in fields(Grid) if each.init})
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: it does not describe a grid ({error!r}); restore it") from error
