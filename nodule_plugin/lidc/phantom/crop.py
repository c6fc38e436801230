"""One phantom: a small CT volume around one nodule's real outlines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nodule_plugin.findings import Findings
from nodule_plugin.lidc.geometry import contour_area
from nodule_plugin.lidc.phantom import surroundings
from nodule_plugin.lidc.phantom.grid import Grid
from nodule_plugin.lidc.phantom.scanner import Scanner
from nodule_plugin.lidc.phantom.shape import add_lobes, outline_points, shape_transform, signed_distance
from nodule_plugin.lidc.phantom.tissue import Layer, nodule_layers
from nodule_plugin.lidc.records import Annotation, Scan

LEAST_SIDE = 44
"""Pixels a side of the smallest crop, about that of the real ones."""

FINE_BELOW = 64
"""Grids with fewer pixels a side than this are drawn at twice the scan's resolution."""

WALL_FRACTION = 0.42
"""Fraction of the crops that show pleura and chest wall."""

FISSURE_FRACTION = 0.12
"""Fraction of the crops that show a fissure."""


@dataclass(frozen=True)
class Crop:
    """A phantom around one nodule.

    Attributes:
        volume: int16 HU, axes (x, y, z) = (column, row, slice), z ascending.
        mask: uint8 on the same grid, 1 in the nodule (spicules not included).
        spacing: (x, y, z) mm.
        first: (column, row) of the first pixel in the scan's slices.
        z: position of each slice, mm.
        centre: (column, row) of the nodule in the crop's pixels, and the index of its centre slice.
    """

    volume: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float, float]
    first: tuple[int, int]
    z: np.ndarray
    centre: tuple[float, float, int]


def render_crop(scan: Scan, cluster: Sequence[Annotation], findings: Findings, rng: np.random.Generator) -> Crop:
    """Draw a nodule and its surroundings from its readers' outlines and their consensus.

    The crop's side is 2.3 times the nodule's diameter, at least :data:`LEAST_SIDE` pixels; it has a slice below and
    above the outlined ones.

    Args:
        scan: gives pixel spacing, slice positions and slice thickness.
        cluster: the nodule's annotations.
        findings: what the picture has to show.
        rng: source of all chance; the same state gives the same crop.
    """
    grid = _grid(scan, cluster)
    distance = signed_distance(cluster, grid, shape_transform(cluster, findings))
    distance = add_lobes(distance, grid, findings, rng)
    scanner = Scanner.draw(scan.slice_thickness, rng)
    hu = scanner.image(_compose(scan, grid, distance, findings, rng), grid, rng)
    depth = grid.bin_down(distance)
    mask = depth > min(0.0, 0.99 * float(depth.max()), 1.01 * float(depth.max()))
    return Crop(
        volume=np.clip(np.rint(hu), -1024, 3071).astype(np.int16).transpose(2, 1, 0),
        mask=mask.astype(np.uint8).transpose(2, 1, 0),
        spacing=(grid.spacing, grid.spacing, grid.slice_spacing),
        first=(grid.first[1], grid.first[0]),
        z=grid.z,
        centre=(
            grid.centre[1] - grid.first[1],
            grid.centre[0] - grid.first[0],
            int(np.abs(grid.axes[0]).argmin()),
        ),
    )


def _compose(scan: Scan, grid: Grid, distance: np.ndarray, findings: Findings, rng: np.random.Generator) -> np.ndarray:
    """The scene in HU before it is scanned, from the back to the front."""
    slab = max(scan.slice_thickness, grid.slice_spacing) if np.isfinite(scan.slice_thickness) else grid.slice_spacing
    outward = _outward(scan, grid, rng)
    volume = surroundings.lung(grid, rng)
    layers: list[Layer] = [surroundings.vessels(distance, grid, outward, slab, rng)]
    if rng.random() < FISSURE_FRACTION:
        layers.append(surroundings.fissure(grid, rng))
    layers += nodule_layers(distance, grid, findings, rng)
    if rng.random() < WALL_FRACTION:
        layers += surroundings.chest_wall(distance, grid, outward, rng)
    for layer in layers:
        volume = layer.over(volume)
    return volume


def _outward(scan: Scan, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Unit vector (slice, row, column) from the middle of the nearer lung to the nodule, with some play."""
    middle = np.array([0.0, 256.0, 256.0 + np.sign(grid.centre[1] - 256.0) * 75.0 / scan.pixel_spacing])
    direction = np.array([0.0, *grid.centre]) - middle + rng.normal(0, 15, 3) * [0.6, 1, 1]
    return direction / np.linalg.norm(direction)


def _centre_z(cluster: Sequence[Annotation]) -> float:
    """Of the positions that at least half of the readers outlined, the one nearest to the centre of mass, mm."""
    area: dict[float, float] = {}
    readers: Counter[float] = Counter()
    for annotation in cluster:
        outlines = [contour for contour in annotation.contours if contour.inclusion]
        readers.update({contour.z for contour in outlines})
        for contour in outlines:
            area[contour.z] = area.get(contour.z, 0.0) + contour_area(contour) + 1  # 1: a point is a pixel
    positions, weights = np.array(list(area)), np.array(list(area.values()))
    enough = min(len(cluster) / 2, max(readers.values()))
    agreed = np.array(sorted(z for z in area if readers[z] >= enough))
    return float(agreed[np.abs(agreed - np.average(positions, weights=weights)).argmin()])


def _grid(scan: Scan, cluster: Sequence[Annotation]) -> Grid:
    points = outline_points(cluster)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = (low + high) / 2
    outlined = np.array([c.z for a in cluster for c in a.contours if c.inclusion])
    slice_z = np.asarray(scan.slice_z) if scan.slice_z else np.unique(outlined)
    spacing_z = float(np.median(np.diff(slice_z))) if len(slice_z) > 1 else scan.slice_thickness
    first_z = float(slice_z[np.abs(slice_z - outlined.min()).argmin()]) - spacing_z
    slices = round((outlined.max() - outlined.min()) / spacing_z) + 3
    diameter_mm = max(float((high - low).max()) * scan.pixel_spacing, 3.0)
    side = max(int(np.ceil(2.3 * diameter_mm / scan.pixel_spacing)) + 2, LEAST_SIDE)
    return Grid(
        first=(int(np.floor(centre[0] - (side - 1) / 2 + 0.5)), int(np.floor(centre[1] - (side - 1) / 2 + 0.5))),
        shape=(side, side),
        spacing=scan.pixel_spacing,
        factor=2 if side < FINE_BELOW else 1,
        z=first_z + spacing_z * np.arange(slices),
        slice_spacing=spacing_z,
        centre=(float(centre[0]), float(centre[1])),
        centre_z=_centre_z(cluster),
    )
