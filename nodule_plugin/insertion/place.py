"""Where a nodule is to be: its mask in the voxels of a series, and how much of a change counts in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from nodule_plugin.findings import Findings
from nodule_plugin.insertion.block import Block, Box

CORE_MM, FEATHER_MM = 1.0, 2.5
"""Around the nodule the change counts in full, and in part, up to these distances."""
_NODULE = 0.1
"""From this fraction on a sample holds nodule."""
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, eq=False)
class Place:
    """A nodule to be, where it is to be.

    Attributes:
        prompt, findings, diameter_mm, seed: of the nodule.
        centre: (x, y, z), mm.
        block: the samples that the source works on.
        drawn: (D, H, W), the nodule's mask on them.
        box: the voxels of the series that can change.
        mask, weight: in the box; how much of a voxel is nodule, and how much of the change counts there.
    """

    prompt: str
    findings: Findings | None
    diameter_mm: float
    seed: int
    centre: np.ndarray
    block: Block
    drawn: np.ndarray
    box: Box
    mask: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(
        cls,
        prompt: str,
        findings: Findings | None,
        diameter_mm: float,
        seed: int,
        centre: np.ndarray,
        block: Block,
        drawn: np.ndarray,
    ) -> Place:
        """A nodule with its mask in the voxels of the series."""
        box = block.box()
        mask = np.clip(block.to_series(drawn, box), 0, 1)
        weight = np.clip(block.to_series(sample_weight(drawn, block), box), 0, 1)
        mask[mask < _LEAST_WEIGHT] = weight[weight < _LEAST_WEIGHT] = 0
        return cls(prompt, findings, diameter_mm, seed, centre, block, drawn, box, mask, weight)

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
        changed = np.zeros(self.block.geometry.shape, dtype=bool)
        changed[self.box] = self.weight > 0
        return bool((changed[other.box] & (other.weight > 0)).any())


def sample_weight(drawn: np.ndarray, block: Block) -> np.ndarray:
    """How much of a change counts at each sample: 1 in the nodule and close to it, 0 beyond :data:`FEATHER_MM`.

    Args:
        drawn: (D, H, W), the nodule's mask.
        block: its samples.
    """
    distance = distance_transform_edt(drawn < _NODULE, sampling=block.spacing)
    ramp = np.clip((FEATHER_MM - distance) / (FEATHER_MM - CORE_MM), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
