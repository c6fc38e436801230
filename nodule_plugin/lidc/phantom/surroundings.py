"""The lung around a nodule: parenchyma, vessels, fissures, emphysema, pleura and chest wall."""

from __future__ import annotations

import numpy as np

from nodule_plugin.lidc.phantom.grid import Grid, smooth_noise, soft_step
from nodule_plugin.lidc.phantom.shape import radius_of
from nodule_plugin.lidc.phantom.tissue import Layer
from nodule_plugin.lidc.phantom.tubes import Tube, deposit, draw_tubes, grow_vessel

BROAD_CONTACT_FRACTION = 0.25
"""Fraction of the walls that the nodule does not just touch."""

HAZE_FRACTION = 0.1
"""Fraction of the lungs that are hazy."""

EMPHYSEMA_FRACTION = 0.1
"""Fraction of the lungs with emphysema."""


def lung(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Aerated parenchyma, HU: its own level, slow variation, fine interstitium, now and then haze or emphysema."""
    level = np.clip(rng.normal(-876, 33), -945, -790)
    volume = level + 14 * smooth_noise(grid, 9.0, rng) + 16 * smooth_noise(grid, 2.5, rng)
    volume += _interstitium(grid, rng)
    if rng.random() < HAZE_FRACTION:
        # Dependent or inflamed lung: a haze that comes and goes.
        volume += rng.uniform(60, 200) * np.clip(1 + 0.5 * smooth_noise(grid, 10.0, rng), 0, 2)
    if rng.random() < EMPHYSEMA_FRACTION:
        holes = soft_step(smooth_noise(grid, rng.uniform(2.5, 5.0), rng) - 0.9, 0.8)
        volume = Layer(holes, -985.0).over(volume)
    return volume


def _interstitium(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Septa and vessels too thin to be seen singly, HU above the lung around them."""
    fraction = np.zeros(grid.samples, dtype=np.float32)
    rows, columns = (count * grid.spacing for count in grid.shape)
    per_slice = 0.06 * rows * columns * rng.gamma(2, 0.5)
    steps = int(5.0 / grid.pitch)
    for plane in fraction:
        # A slice at a time: over a whole chest there are millions of points.
        count = rng.poisson(per_slice)
        headings = np.cumsum(rng.normal(0, 0.15, (count, steps)), axis=1) + rng.uniform(0, 2 * np.pi, (count, 1))
        path = [
            rng.uniform(axis.min(), axis.max(), (count, 1)) + grid.pitch * np.cumsum(turn(headings), axis=1)
            for axis, turn in zip(grid.axes[1:], (np.sin, np.cos))
        ]
        widths = rng.gamma(2, 0.035, (count, 1)) + np.zeros((1, steps))
        points = np.stack([np.full_like(path[0], grid.axes[0][0]), *path], axis=-1).reshape(-1, 3)
        deposit(plane[None], grid, points, (widths / grid.pitch).ravel())
    return 800 * np.minimum(fraction, 0.5)


def vessels(distance: np.ndarray, grid: Grid, outward: np.ndarray, slab_mm: float, rng: np.random.Generator) -> Layer:
    """Branching vessels, most running between hilum and pleura; some end in the nodule.

    Args:
        distance: signed distance to the nodule's surface, mm.
        grid: where to draw.
        outward: (3,) unit vector from the hilum towards the pleura.
        slab_mm: thickness of a slice.
        rng: source of all chance.
    """
    extent = np.array([grid.shape[0], grid.shape[1]]) * grid.spacing
    radius = radius_of(distance)
    depth = max(np.ptp(grid.axes[0]), slab_mm)
    tubes: list[Tube] = []
    for _ in range(rng.poisson(0.3 + extent.prod() / 420 * (1 + depth / 25))):
        start = np.array([rng.uniform(-0.5, 0.5) * depth, *(rng.uniform(-0.5, 0.5, 2) * extent)])
        vessel_radius = min(rng.gamma(1.6, 0.3) + 0.2, 2.8)
        if np.hypot(*start[1:]) < radius + vessel_radius:
            continue
        heading = 0.9 * outward + rng.standard_normal(3)
        tubes += grow_vessel(start, heading, vessel_radius, 25.0, rng)
        tubes += grow_vessel(start, -heading, vessel_radius, 20.0, rng)
    for _ in range(rng.choice(4, p=[0.45, 0.3, 0.17, 0.08])):
        heading = rng.standard_normal(3) * [0.35, 1, 1] - 0.4 * outward
        feeding = min(rng.gamma(2.5, 0.22) + 0.25, 0.4 * radius + 0.2)
        start = 0.5 * radius * heading / np.linalg.norm(heading)
        tubes += grow_vessel(start, heading, feeding, 30.0, rng)
    return Layer(draw_tubes(grid, tubes, slab_mm), rng.uniform(10, 90))


def fissure(grid: Grid, rng: np.random.Generator) -> Layer:
    """A faint, gently curved sheet."""
    direction, offset = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4) * min(grid.shape) * grid.spacing
    z, rows, columns = grid.open_axes
    sheet = np.sin(direction) * rows + np.cos(direction) * columns - offset + rng.normal(0, 0.4) * z
    sheet = sheet + 1.2 * smooth_noise(grid, 12.0, rng)
    thickness = rng.uniform(0.3, 0.7)
    width = max(grid.pitch, 0.5)
    return Layer(np.exp(-0.5 * (sheet / width) ** 2) * thickness / (2.5 * width), -50.0)


def chest_wall(distance: np.ndarray, grid: Grid, outward: np.ndarray, rng: np.random.Generator) -> list[Layer]:
    """Pleura, muscle, fat and now and then a rib, beyond a curved boundary that the nodule may touch.

    Args:
        distance: signed distance to the nodule's surface, mm.
        grid: where to draw.
        outward: (3,) unit vector towards the wall.
        rng: source of all chance.
    """
    z, rows, columns = grid.open_axes
    normal = outward + rng.normal(0, 0.35, 3) * [0.6, 1, 1]
    normal /= np.linalg.norm(normal)
    height = normal[0] * z + normal[1] * rows + normal[2] * columns
    across = normal[1] * columns - normal[2] * rows
    inside = distance > 0
    nodule_reach = float(np.broadcast_to(height, distance.shape)[inside].max()) if inside.any() else 0.0
    gap = rng.exponential(0.25 * radius_of(distance) + 1.5) - 0.25 * radius_of(distance)
    if rng.random() < BROAD_CONTACT_FRACTION:
        gap -= rng.uniform(0.2, 0.8) * radius_of(distance)
    curvature = rng.uniform(0.2, 1.4) / 100
    depth = height - nodule_reach - gap + curvature * (across**2 + 0.3 * z**2)
    depth = depth + 0.5 * smooth_noise(grid, 9.0, rng)
    layers = [Layer(soft_step(depth, 0.3 + 1.0 * abs(normal[0]) * grid.slice_spacing), _wall_hu(rng))]
    if rng.random() < 0.55:
        fat = soft_step(depth - rng.uniform(2, 6) + 1.5 * smooth_noise(grid, 5.0, rng), 1.0)
        fat = fat * soft_step(0.9 - smooth_noise(grid, 4.0, rng), 0.5)
        layers.append(Layer(fat, rng.uniform(-115, -80)))
    if rng.random() < 0.4:
        layers += _rib(depth, across, grid, rng)
    return layers


def _wall_hu(rng: np.random.Generator) -> float:
    """Muscle, or now and then mediastinum with contrast medium."""
    return rng.uniform(90, 200) if rng.random() < 0.15 else rng.uniform(25, 65)


def _rib(depth: np.ndarray, across: np.ndarray, grid: Grid, rng: np.random.Generator) -> list[Layer]:
    """An oval of marrow within cortical bone, oblique to the slices."""
    z = grid.open_axes[0]
    middle = rng.uniform(5, 8)
    along = across - rng.uniform(-12, 12) - rng.uniform(-2, 2) * z
    oval = 1 - np.sqrt(((depth - middle) / rng.uniform(3, 4)) ** 2 + (along / rng.uniform(8, 18)) ** 2)
    cortex = soft_step(oval, 0.15)
    marrow = soft_step(oval - 0.3, 0.2)
    spongy = rng.uniform(120, 350) + 70 * smooth_noise(grid, 2.0, rng)
    return [Layer(cortex, rng.uniform(450, 900)), Layer(marrow, spongy)]
