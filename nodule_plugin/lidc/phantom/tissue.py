"""What the nodule is made of: attenuation from texture and calcification, borders from margin and spiculation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d

from nodule_plugin.findings import Findings
from nodule_plugin.lidc.phantom.grid import Grid, smooth_noise, soft_step
from nodule_plugin.lidc.phantom.shape import radius_of
from nodule_plugin.lidc.phantom.tubes import deposit

EDGE_WIDTH = {5: 0.05, 4: 0.15, 3: 0.3, 2: 0.5, 1: 0.75}
"""Margin -> width over which the border fades, in nodule radii."""

EDGE_ROUGHNESS = {5: 0.0, 4: 0.03, 3: 0.08, 2: 0.15, 1: 0.22}
"""Margin -> how far the border wanders in and out, in nodule radii."""

CORE_START = {5: None, 4: 0.15, 3: 0.42, 2: 0.72, 1: None}
"""Texture -> depth at which ground glass turns solid, in nodule radii; None where there is only one of the two."""

SPICULES = {1: 0, 2: 2, 3: 7, 4: 12, 5: 18}
"""Spiculation -> strands in each slice."""


@dataclass(frozen=True)
class Layer:
    """Something to lay over the lung: ``volume = volume * (1 - fraction) + hu * fraction``.

    Attributes:
        fraction: of each sample's volume that is filled, 0 to 1, (slices, rows, columns).
        hu: attenuation, a number or an array of the same shape.
    """

    fraction: np.ndarray
    hu: np.ndarray | float

    def over(self, volume: np.ndarray) -> np.ndarray:
        """``volume`` with the layer on it."""
        return volume + (self.hu - volume) * self.fraction


def nodule_layers(distance: np.ndarray, grid: Grid, findings: Findings, rng: np.random.Generator) -> list[Layer]:
    """The nodule from the outside in: spicules, body, calcification or cavity.

    Args:
        distance: signed distance to the surface, mm, positive inside.
        grid: where it is sampled.
        findings: texture, margin, spiculation, calcification, internal structure and subtlety are drawn here.
        rng: source of all chance.
    """
    # The outlines run along the first voxels outside, and most readers draw generously: measured on real crops, tissue
    # reaches half of its contrast this far within them (but something is left of the thinnest nodule).
    distance = distance - min(0.5 * grid.spacing + max(rng.normal(0.2, 0.2), 0.0), 0.4 * radius_of(distance))
    radius = radius_of(distance)
    # Outlines follow the tissue only so well, whatever its margin.
    distance = distance + min(0.3, 0.15 * radius) * smooth_noise(grid, max(0.7 * radius, 1.5), rng)
    rough = EDGE_ROUGHNESS[findings.margin] * radius * smooth_noise(grid, max(0.5 * radius, 1.0), rng)
    rough += 0.4 * EDGE_ROUGHNESS[findings.margin] * radius * smooth_noise(grid, max(0.22 * radius, 0.8), rng)
    surface = distance + rough
    width = max(EDGE_WIDTH[findings.margin] * radius, 0.15)
    body = _body_hu(distance, grid, findings, radius, rng)
    # Where readers draw a faded border they include part of the fading: the half-way point lies a little inside.
    fraction = _thick_slices(soft_step(surface - 0.15 * width, width), rng)
    layers = []
    if findings.spiculation > 1:
        spicules = _spicules(surface, grid, findings, radius, rng)
        layers.append(Layer(spicules, float(np.median(body[distance > 0.3 * radius])) if radius > 1 else -50.0))
    layers.append(Layer(fraction, body))
    if findings.calcified:
        layers.append(_calcification(surface, grid, findings.calcification, radius, rng))
    if findings.internal_structure == 4:
        layers.append(Layer(soft_step(surface - 0.45 * radius + 0.1 * rough, 0.3), -960.0))
    return layers


def _thick_slices(fraction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each slice takes in a little of its neighbours: small nodules lose contrast, the ends of large ones fade."""
    overlap = rng.uniform(0.02, 0.12)
    return correlate1d(fraction, [overlap, 1 - 2 * overlap, overlap], axis=0, mode="nearest")


def _body_hu(
    distance: np.ndarray, grid: Grid, findings: Findings, radius: float, rng: np.random.Generator
) -> np.ndarray:
    level = {2: 5.0, 3: -80.0}.get(findings.internal_structure or 1, rng.uniform(10, 60))
    solid = level + 14 * smooth_noise(grid, 2.0, rng)
    if findings.texture == 5:
        return solid
    faint = 0 if findings.subtlety is None else 15 * (findings.subtlety - 4)
    glass = rng.uniform(-660, -430) + faint + 45 * smooth_noise(grid, 1.6, rng) + 35 * smooth_noise(grid, 4.0, rng)
    glass += 160 * np.clip(distance / radius, 0, 1)
    start = CORE_START[findings.texture]
    if start is None:
        return glass
    start = start + rng.uniform(-0.12, 0.12)
    wander = 0.16 * smooth_noise(grid, max(0.45 * radius, 1.2), rng) + 0.08 * smooth_noise(grid, 1.5, rng)
    core = soft_step(distance / radius + wander - start, 0.18)
    core_hu = {4: solid, 3: solid - 40, 2: solid - 180}[findings.texture]
    return glass + (core_hu - glass) * core


def _calcification(surface: np.ndarray, grid: Grid, code: int, radius: float, rng: np.random.Generator) -> Layer:
    """Popcorn (1), laminated (2), solid (3), non-central (4) or central (5) calcium."""
    hu = rng.uniform(700, 2200)
    z, rows, columns = grid.open_axes
    depth = surface / radius
    if code == 3:
        return Layer(soft_step(depth - 0.12, 0.2), hu)
    if code == 2:
        rings = np.cos(2 * np.pi * (depth - 0.28) / 0.5) * (depth > 0.05)
        return Layer(soft_step(rings - 0.25, 0.5), hu)
    if code == 1:
        grains = smooth_noise(grid, max(0.3 * radius, 0.9), rng)
        return Layer(soft_step(grains - 0.5, 0.6) * soft_step(depth - 0.22, 0.15), hu)
    offset = np.zeros(3)
    if code == 4:
        direction = rng.standard_normal(3) * [0.3, 1, 1]
        offset = 0.5 * radius * direction / np.linalg.norm(direction)
    reach = np.sqrt((z - offset[0]) ** 2 + (rows - offset[1]) ** 2 + (columns - offset[2]) ** 2)
    size = rng.uniform(0.32, 0.42) * radius if code == 4 else rng.uniform(0.4, 0.55) * radius
    reach = reach + 0.15 * size * smooth_noise(grid, max(size, 0.8), rng)
    return Layer(soft_step(max(size, 0.7) - reach, 0.4) * (depth > 0.02), hu)


def _spicules(
    surface: np.ndarray, grid: Grid, findings: Findings, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Thin strands from the surface into the lung, tapering, lightly bent, each broad at its root."""
    points, amounts = [], []
    for index, z in enumerate(grid.axes[0]):
        if surface[index].max() <= 0:
            continue
        inside = np.argwhere(surface[index] > 0.5 * surface[index].max())
        middle = np.array([grid.axes[1][inside[:, 0]].mean(), grid.axes[2][inside[:, 1]].mean()])
        count = rng.poisson(SPICULES[findings.spiculation] * 0.8) + (findings.spiculation > 2)
        angles = rng.uniform(0, 2 * np.pi, count)
        lengths = radius * rng.gamma(4, 0.25, count) * (0.5 + 0.13 * findings.spiculation)
        roots = rng.uniform(0.25, 0.55, count) + 0.05 * radius * rng.uniform(0.3, 1, count)
        for angle, length, root in zip(angles, lengths, roots):
            direction = np.array([np.sin(angle), np.cos(angle)])
            start = _exit_distance(surface[index], grid, middle, direction) - 0.15 * radius
            steps = np.linspace(0, 1, max(int(length / (0.4 * grid.pitch)), 4))
            bend = rng.normal(0, 0.12) * length * steps**2
            normal = np.array([-direction[1], direction[0]])
            path = middle + (start + length * steps)[:, None] * direction + bend[:, None] * normal
            drift = z + rng.normal(0, 0.35) * grid.slice_spacing * steps
            fan = 0.15 * radius * np.exp(-steps * length / (0.2 * radius))
            widths = 2 * root * (1 - steps) ** 0.8 + fan * (1 - steps)
            points.append(np.column_stack([drift, path]))
            amounts.append(widths * length / len(steps) / grid.pitch**2)
    fraction = np.zeros(grid.samples, dtype=np.float32)
    if points:
        deposit(fraction, grid, np.concatenate(points), np.concatenate(amounts))
    return np.minimum(fraction, 1)


def _exit_distance(surface: np.ndarray, grid: Grid, middle: np.ndarray, direction: np.ndarray) -> float:
    """How far from ``middle`` a ray within a slice leaves the nodule, mm."""
    rows, columns = grid.axes[1:]
    reaches = np.arange(0, 0.7 * max(grid.shape) * grid.spacing, grid.pitch)
    row = np.rint((middle[0] + reaches * direction[0] - rows[0]) / grid.pitch).astype(int).clip(0, len(rows) - 1)
    column = np.rint((middle[1] + reaches * direction[1] - columns[0]) / grid.pitch).astype(int)
    outside = np.flatnonzero(surface[row, column.clip(0, len(columns) - 1)] <= 0)
    return float(reaches[outside[0]]) if len(outside) else float(reaches[-1])
