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


def deposit(fraction: np.ndarray, grid: Grid, points: np.ndarray, amounts: np.ndarray) -> None:
    """Add ``amounts`` at ``points`` to the samples around each (trilinear), in place; points off the grid are left out.

    The way to draw what is thinner than a sample: the total stays right wherever the points fall.

    Args:
        fraction: (slices, rows, columns).
        grid: where it is sampled.
        points: (n, 3) mm from the nodule's centre.
        amounts: (n,) fractions of one sample's volume.
    """
    indices = grid.to_indices(points).astype(np.float32)
    inside = np.all((indices >= 0) & (indices <= np.array(fraction.shape) - 1), axis=1)
    indices, amounts = indices[inside], amounts[inside].astype(np.float32)
    low = np.minimum(indices.astype(int), np.maximum(np.array(fraction.shape) - 2, 0))
    rest = indices - low
    _, rows, columns = fraction.shape
    corner = (low[:, 0] * rows + low[:, 1]) * columns + low[:, 2]
    corners, weights = [], []
    for z, row, column in np.ndindex(min(2, len(fraction)), 2, 2):
        weight = amounts * (rest[:, 0] if z else 1 - rest[:, 0])
        weight = weight * (rest[:, 1] if row else 1 - rest[:, 1]) * (rest[:, 2] if column else 1 - rest[:, 2])
        corners.append(corner + (z * rows + row) * columns + column)
        weights.append(weight)
    total = np.bincount(np.concatenate(corners), np.concatenate(weights), minlength=fraction.size)
    fraction += total.reshape(fraction.shape)


def draw_tubes(grid: Grid, tubes: list[Tube], slab_mm: float) -> np.ndarray:
    """Fraction of each sample that tubes fill.

    A slice is the mean over several planes within ``slab_mm``, so that a thin tube along a thick slice is faint.

    Returns:
        float32 (slices, rows, columns), 0 to 1.
    """
    if not tubes:
        return np.zeros(grid.samples, dtype=np.float32)
    between = max(1, round(grid.slice_spacing / 0.8))
    step = grid.slice_spacing / between
    within = max(1, round(slab_mm / step))
    planes = (len(grid.z) - 1) * between + within
    first = grid.axes[0][0] - (within - 1) / 2 * step
    axes = (first + step * np.arange(planes, dtype=np.float32), *grid.axes[1:])
    fine = np.zeros((planes, *grid.samples[1:]), dtype=np.float32)
    starts = np.concatenate([tube.nodes[:-1] for tube in tubes]).astype(np.float32)
    ends = np.concatenate([tube.nodes[1:] for tube in tubes]).astype(np.float32)
    radii = np.concatenate([np.column_stack([tube.radii[:-1], tube.radii[1:]]) for tube in tubes])
    reach = radii.max(axis=1, keepdims=True) + grid.pitch
    low, high = np.minimum(starts, ends) - reach, np.maximum(starts, ends) + reach
    boxes = np.array(
        [[np.searchsorted(axis, low[:, k]), np.searchsorted(axis, high[:, k])] for k, axis in enumerate(axes)]
    )
    for index in np.flatnonzero(np.all(boxes[:, 0] < boxes[:, 1], axis=0)):
        box = tuple(slice(start, stop) for start, stop in boxes[:, :, index].tolist())
        _draw_segment(fine, axes, grid.pitch, box, starts[index], ends[index], radii[index].tolist())
    return np.stack([fine[k * between : k * between + within].mean(axis=0) for k in range(len(grid.z))])


def _draw_segment(
    fraction: np.ndarray,
    axes: tuple[np.ndarray, ...],
    pitch: float,
    box: tuple[slice, ...],
    start: np.ndarray,
    end: np.ndarray,
    radii: list[float],
) -> None:
    """A round-ended, tapering piece of a tube, in place, within its bounding box."""
    z, rows, columns = (axis[part] for axis, part in zip(axes, box))
    dz, dr, dc = z[:, None, None] - start[0], rows[None, :, None] - start[1], columns[None, None, :] - start[2]
    along = end - start
    position = np.clip((dz * along[0] + dr * along[1] + dc * along[2]) / max(float(along @ along), 1e-6), 0, 1)
    offset = (dz - position * along[0]) ** 2 + (dr - position * along[1]) ** 2 + (dc - position * along[2]) ** 2
    radius = radii[0] + (radii[1] - radii[0]) * position
    # A tube thinner than a sample fills it only in part, whatever the distance of its axis.
    fill = np.clip((radius - np.sqrt(offset)) / pitch + 0.5, 0, 1) * np.minimum(1, 2 * radius / pitch)
    np.maximum(fraction[box], fill, out=fraction[box])


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
