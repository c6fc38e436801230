"""Where a nodule is to be: its mask in the voxels of a series, and how much of a change counts in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from scipy.ndimage import distance_transform_edt

from nodule_plugin.findings import Findings
from nodule_plugin.insertion.block import Block, Box
from nodule_plugin.insertion.mask_shapes import longest_diameter_mm

CORE_MM, FEATHER_MM = 1.0, 2.5
"""Around the nodule the change counts in full, and in part, up to these distances."""
_NODULE = 0.1
"""From this fraction on a sample holds nodule."""
_LEAST_WEIGHT = 1e-3
_CLOSE_ENOUGH, _LARGEST_RATIO = 0.02, 1.5


@dataclass(frozen=True)
class Lesion:
    """A nodule to insert.

    Attributes:
        where: it was asked for, for errors.
        position: (x, y, z); None for a random place.
        diameter_mm: its greatest extent in an axial slice.
        prompt: of the source.
        findings: None where only a prompt was given that no template words.
    """

    where: str
    position: tuple[float, float, float] | None
    diameter_mm: float
    prompt: str
    findings: Findings | None


@dataclass(frozen=True, eq=False)
class Place:
    """A nodule to be, where it is to be.

    Attributes:
        lesion: what was asked for.
        seed: of the nodule.
        drawn_mm: diameter of the mask as drawn: slices that are thick against the nodule show less of it.
        centre: (x, y, z), mm.
        block: the samples that the source works on.
        drawn: (D, H, W), the nodule's mask on them.
        box: the voxels of the series that can change.
        mask, weight: in the box; how much of a voxel is nodule, and how much of the change counts there.
    """

    lesion: Lesion
    seed: int
    drawn_mm: float
    centre: np.ndarray
    block: Block
    drawn: np.ndarray
    box: Box
    mask: np.ndarray
    weight: np.ndarray

    @property
    def measured_mm(self) -> float:
        """The nodule's greatest extent in a slice of the series."""
        return longest_diameter_mm(self.mask, tuple(self.block.geometry.spacing))

    @property
    def is_cut(self) -> bool:
        """Whether something of the nodule lies beyond the block or beyond the series."""
        samples = np.argwhere(self.drawn >= _NODULE)
        at_face = (samples == 0) | (samples == np.array(self.drawn.shape) - 1)
        indices = samples @ self.block.matrix[:3, :3].T + self.block.matrix[:3, 3]
        beyond = (indices < 0) | (indices > np.array(self.block.geometry.shape) - 1)
        return bool(at_face.any() or beyond.any())

    def touches(self, other: Place) -> bool:
        """Whether a voxel would be changed for both."""
        both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(self.box, other.box)]
        if any(part.start >= part.stop for part in both):
            return False
        mine, theirs = (
            place.weight[tuple(slice(b.start - a.start, b.stop - a.start) for a, b in zip(place.box, both))] > 0
            for place in (self, other)
        )
        return bool((mine & theirs).any())


def fit_place(
    lesion: Lesion, seed: int, centre: np.ndarray, block: Block, draw: Callable[[float], np.ndarray]
) -> Place:
    """A nodule at a point, so large that the series' slices show it as large as was asked.

    A slice shows the mean over its thickness, in which a small nodule's outline is smaller: up to four sizes are drawn,
    and the one that comes nearest is taken.

    Args:
        lesion: what was asked for.
        seed: of the nodule.
        centre: (x, y, z), mm.
        block: the source's samples around it.
        draw: (D, H, W) mask of a nodule of so many mm.
    """
    box, spacing = block.box(), tuple(block.geometry.spacing)
    tries: list[tuple[float, float, np.ndarray, np.ndarray]] = []
    size = lesion.diameter_mm
    for _ in range(4):
        drawn = draw(size)
        mask = np.clip(block.to_series(drawn, box), 0, 1)
        ratio = longest_diameter_mm(mask, spacing) / lesion.diameter_mm
        tries.append((abs(ratio - 1), size, drawn, mask))
        if abs(ratio - 1) < _CLOSE_ENOUGH:
            break
        size = min(size / ratio if ratio else 1.3 * size, _LARGEST_RATIO * lesion.diameter_mm)
    _, size, drawn, mask = min(tries, key=itemgetter(0))
    weight = np.clip(block.to_series(sample_weight(drawn, block.spacing), box), 0, 1)
    mask[mask < _LEAST_WEIGHT] = weight[weight < _LEAST_WEIGHT] = 0
    return Place(lesion, seed, size, centre, block, drawn, box, mask, weight)


def sample_weight(drawn: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """How much of a change counts at each sample: 1 in the nodule and close to it, 0 beyond :data:`FEATHER_MM`.

    Args:
        drawn: (D, H, W), the nodule's mask.
        spacing_mm: (z, y, x) between samples.
    """
    distance = distance_transform_edt(drawn < _NODULE, sampling=spacing_mm)
    ramp = np.clip((FEATHER_MM - distance) / (FEATHER_MM - CORE_MM), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
