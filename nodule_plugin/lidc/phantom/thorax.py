"""A chest for whole series: body, ribs, spine, mediastinum and two lungs, with room for the nodules where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nodule_plugin.lidc.phantom.grid import Grid, smooth_noise, soft_step
from nodule_plugin.lidc.phantom.tissue import Layer
from nodule_plugin.lidc.phantom.tubes import Tube, draw_tubes, grow_vessel

Ball = tuple[np.ndarray, float]
"""Centre (slice, row, column) in mm from the grid's origin, and radius, mm."""


@dataclass(frozen=True)
class Thorax:
    """Measures of one chest, mm. Coordinates: rows run to the back, columns to the patient's left.

    Attributes:
        width, depth: half axes of the body.
        fat: thickness under the skin.
        wall: from the skin to the lung.
        heart: half width of the mediastinum.
        blood: attenuation of blood, HU; contrast medium raises it.
    """

    width: float
    depth: float
    fat: float
    wall: float
    heart: float
    blood: float

    @classmethod
    def draw(cls, half_field: float, rng: np.random.Generator) -> Thorax:
        """A chest that fits into a field of view of ``half_field`` mm to each side."""
        width = min(rng.uniform(165, 190), 0.95 * half_field)
        return cls(
            width=width,
            depth=width * rng.uniform(0.64, 0.72),
            fat=rng.uniform(6, 16),
            wall=rng.uniform(26, 34),
            heart=rng.uniform(36, 46),
            blood=float(rng.choice([rng.uniform(35, 50), rng.uniform(110, 220)])),
        )

    def lungs(self, grid: Grid, nodules: Sequence[Ball]) -> np.ndarray:
        """Distance to the lungs' surface, about mm, positive inside: two lungs and a bay around each nodule."""
        _, rows, columns = grid.open_axes
        cavity = self._oval(rows, columns, self.width - self.wall, self.depth - self.wall)
        middle = 1 - np.hypot((columns - 10) / self.heart, (rows + 15) / 75)
        spine = 1 - np.hypot(columns / 30, (rows - self.depth + 45) / 42)
        inside = np.minimum(np.minimum(cavity, -self.heart * middle), -30 * spine)
        inside = np.broadcast_to(inside, grid.samples)
        return self._with_bays(inside + 1.0 * smooth_noise(grid, 14.0, np.random.default_rng(0)), grid, nodules, 7.0)

    def body(self, grid: Grid, nodules: Sequence[Ball]) -> np.ndarray:
        """Distance to the skin, about mm, positive inside."""
        _, rows, columns = grid.open_axes
        skin = np.broadcast_to(self._oval(rows, columns, self.width, self.depth), grid.samples)
        return self._with_bays(skin, grid, nodules, 7.0 + self.wall)

    @staticmethod
    def _oval(rows: np.ndarray, columns: np.ndarray, width: float, depth: float) -> np.ndarray:
        return depth * (1 - (np.abs(columns / width) ** 2.4 + np.abs(rows / depth) ** 2.4) ** (1 / 2.4))

    @staticmethod
    def _with_bays(distance: np.ndarray, grid: Grid, nodules: Sequence[Ball], margin: float) -> np.ndarray:
        """``distance`` to the union with a ball around each nodule, ``margin`` larger than it."""
        joined = np.array(distance, dtype=np.float32)
        z, rows, columns = grid.open_axes
        for centre, radius in nodules:
            reach = np.sqrt((z - centre[0]) ** 2 + (rows - centre[1]) ** 2 + (columns - centre[2]) ** 2)
            np.maximum(joined, radius + margin - reach, out=joined)
        return joined

    def layers(self, lungs: np.ndarray, body: np.ndarray, grid: Grid, rng: np.random.Generator) -> Iterator[Layer]:
        """Everything but the lungs, from the inside out; one at a time, since each is as large as the scan."""
        _, rows, columns = grid.open_axes
        outside = soft_step(-lungs, 1.0)
        tissue = 45 + 6 * smooth_noise(grid, 5.0, rng)
        fat = 0.9 * soft_step(smooth_noise(grid, 12.0, rng) - 0.6, 1.2) + soft_step(self.fat - body, 1.5)
        tissue += (-100 - tissue) * np.minimum(fat, 1)
        yield Layer(outside, tissue)
        yield self._great_vessels(outside, grid)
        yield from self._bones(lungs, body, grid, rng)
        trachea = np.hypot(columns, rows - 5)
        yield Layer(soft_step(9 - trachea, 1.0), -990.0)
        yield Layer(soft_step(-body, 1.0), -1000.0)
        yield self._table(body, grid)

    def _great_vessels(self, outside: np.ndarray, grid: Grid) -> Layer:
        _, rows, columns = grid.open_axes
        aorta = soft_step(12 - np.hypot(columns - 24, rows - self.depth + 78), 1.0)
        heart = soft_step(1 - np.hypot((columns - 16) / (self.heart - 8), (rows + 22) / 42), 0.05)
        return Layer(outside * np.maximum(aorta, heart), self.blood)

    def _bones(self, lungs: np.ndarray, body: np.ndarray, grid: Grid, rng: np.random.Generator) -> Iterator[Layer]:
        z, rows, columns = grid.open_axes
        outside = soft_step(-lungs - 2.0, 1.0)
        vertebra = 1 - np.hypot(columns / 19, (rows - self.depth + 52) / 16)
        canal = soft_step(9 - np.hypot(columns, rows - self.depth + 27), 1.0)
        arch = 1 - np.hypot(columns / 16, (rows - self.depth + 25) / 16)
        sternum = 1 - np.hypot(columns / 20, (rows + self.depth - 20) / 6)
        # Ribs slope: where a slice cuts them moves around the chest with z.
        angle = np.arctan2(rows, np.abs(columns))
        spacing = np.deg2rad(34)
        turned = (angle + np.deg2rad(1.1) * z + rng.uniform(0, spacing)) % spacing - spacing / 2
        around = turned * np.hypot(rows, columns)
        across = self._oval(rows, columns, self.width - self.wall, self.depth - self.wall) + 7
        ribs = (1 - np.hypot(around / 16, across / 5)) - 2 * (np.abs(columns) < 22)
        bone = np.maximum(np.maximum(np.maximum(vertebra, arch), sternum), ribs)
        marrow = 170 + 50 * smooth_noise(grid, 2.5, rng)
        inside = outside * soft_step(body - 3, 1.0)
        yield Layer(inside * soft_step(bone, 0.12), 650.0)
        yield Layer(inside * soft_step(bone - 0.25, 0.15), marrow)
        yield Layer(inside * canal, 30.0)

    def _table(self, body: np.ndarray, grid: Grid) -> Layer:
        _, rows, columns = grid.open_axes
        gap = rows - self.depth - 8 + 0.0008 * columns**2
        return Layer(soft_step(1.5 - np.abs(gap), 0.8) * soft_step(-body - 2, 1.0), -150.0)

    def vessels(self, lungs: np.ndarray, grid: Grid, slab_mm: float, rng: np.random.Generator) -> Layer:
        """The lungs' vessels: the nearer to the hilum, the wider."""
        tubes: list[Tube] = []
        extent = float(np.ptp(grid.axes[0]))
        for _ in range(int(12 * (extent + 30))):
            side = rng.choice([-1.0, 1.0])
            hilum = np.array([rng.uniform(-0.6, 0.6) * extent + grid.axes[0].mean(), 5.0, side * 45.0])
            away = rng.normal(0, 1, 3) * [0.25, 0.55, 0.45] * 90 + [0, 0, side * 30]
            start = hilum + away
            near = np.exp(-np.linalg.norm(away) / 45)
            radius = min(0.35 + 3.0 * near * rng.gamma(4, 0.25), 5.0)
            tubes += grow_vessel(start, away + rng.normal(0, 15, 3), radius, 28.0, rng)
        return Layer(draw_tubes(grid, tubes, slab_mm) * soft_step(lungs, 1.0), self.blood)
