"""Vessels and strands: bent, tapering tubes, and how they fill a grid's samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nodule_plugin.lidc.phantom.grid import Grid


@dataclass(frozen=True)
class Tube:
    """A polyline with a radius at each node.

    Attributes:
        nodes: (n, 3) in mm from the nodule's centre: slice, row, column.
        radii: (n,) mm.
    """

    nodes: np.ndarray
    radii: np.ndarray


def deposit(share: np.ndarray, grid: Grid, points: np.ndarray, amounts: np.ndarray) -> None:
    """Add ``amounts`` at ``points`` to the samples around each (trilinear), in place.

    The way to draw what is thinner than a sample: the total stays right wherever the points fall.

    Args:
        share: (slices, rows, columns).
        grid: where it is sampled.
        points: (n, 3) mm from the nodule's centre.
        amounts: (n,) shares of one sample's volume.
    """
    indices = grid.to_indices(points)
    low = np.floor(indices).astype(int)
    rest = indices - low
    flat = share.reshape(-1)
    slices, rows, columns = share.shape
    for corner in np.ndindex(2, 2, 2):
        place = low + corner
        weight = np.prod(np.where(corner, rest, 1 - rest), axis=1) * amounts
        valid = np.all((place >= 0) & (place < (slices, rows, columns)), axis=1)
        target = (place[valid, 0] * rows + place[valid, 1]) * columns + place[valid, 2]
        flat += np.bincount(target, weight[valid], minlength=flat.size)


def draw_tubes(grid: Grid, tubes: list[Tube], slab_mm: float) -> np.ndarray:
    """Share of each sample that tubes fill.

    A slice is the mean over several planes within ``slab_mm``, so that a thin tube along a thick slice is faint.

    Returns:
        float32 (slices, rows, columns), 0 to 1.
    """
    share = np.zeros(grid.samples, dtype=np.float32)
    planes = max(1, round(slab_mm / 0.7))
    offsets = ((np.arange(planes) + 0.5) / planes - 0.5) * slab_mm
    z_axis = (grid.axes[0][:, None] + offsets).ravel()
    fine = np.zeros((len(z_axis), *grid.samples[1:]), dtype=np.float32)
    for tube in tubes:
        for start, end, first, last in zip(tube.nodes, tube.nodes[1:], tube.radii, tube.radii[1:]):
            _draw_segment(fine, (z_axis, *grid.axes[1:]), grid.pitch, start, end, first, last)
    np.mean(fine.reshape(len(share), planes, *share.shape[1:]), axis=1, out=share)
    return share


def _draw_segment(
    share: np.ndarray,
    axes: tuple[np.ndarray, ...],
    pitch: float,
    start: np.ndarray,
    end: np.ndarray,
    first: float,
    last: float,
) -> None:
    """A round-ended, tapering piece of a tube, in place, within its bounding box."""
    reach = max(first, last) + pitch
    low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach
    box = tuple(slice(*np.searchsorted(axis, (below, above))) for axis, below, above in zip(axes, low, high))
    z, rows, columns = (axis[part] for axis, part in zip(axes, box))
    if min(len(z), len(rows), len(columns)) == 0:
        return
    dz, dr, dc = z[:, None, None] - start[0], rows[None, :, None] - start[1], columns[None, None, :] - start[2]
    along = end - start
    position = np.clip((dz * along[0] + dr * along[1] + dc * along[2]) / max(float(along @ along), 1e-6), 0, 1)
    offset = (dz - position * along[0]) ** 2 + (dr - position * along[1]) ** 2 + (dc - position * along[2]) ** 2
    radius = first + (last - first) * position
    # A tube thinner than a sample fills it only in part, whatever the distance of its axis.
    fill = np.clip((radius - np.sqrt(offset)) / pitch + 0.5, 0, 1) * np.minimum(1, 2 * radius / pitch)
    np.maximum(share[box], fill, out=share[box])


def grow_vessel(
    start: np.ndarray, direction: np.ndarray, radius: float, length: float, rng: np.random.Generator
) -> list[Tube]:
    """A vessel that wanders, tapers and sometimes branches.

    Args:
        start: (3,) mm.
        direction: (3,) any length; slice, row, column.
        radius: at the start, mm.
        length: mm.
        rng: source of all chance.
    """
    step = max(1.5, 1.5 * radius)
    heading = direction / np.linalg.norm(direction)
    nodes, radii, branches = [start], [radius], []
    for _ in range(max(int(length / step), 2)):
        heading = heading + rng.normal(0, 0.16, 3)
        heading /= np.linalg.norm(heading)
        nodes.append(nodes[-1] + step * heading)
        radii.append(radii[-1] * rng.uniform(0.94, 1.0))
        if radius > 0.35 and rng.random() < 0.14:
            side = heading + rng.normal(0, 0.7, 3)
            child = radii[-1] * rng.uniform(0.45, 0.8)
            # Murray's law: the cubes of the radii add up at a branching.
            radii[-1] = max((radii[-1] ** 3 - child**3) ** (1 / 3), 0.2)
            branches += grow_vessel(nodes[-1], side, child, 0.6 * length, rng)
    return [Tube(np.array(nodes), np.array(radii)), *branches]
