"""Where an inserted nodule's pixels come from: what a source has to offer, and one that pastes real nodules."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.ndimage import affine_transform, center_of_mass, distance_transform_edt
from torch import Tensor

from nodule_plugin.data.crops import TABLE, crop_table
from nodule_plugin.data.nifti import read_volume
from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings
from nodule_plugin.insertion.grid import Grid, Triple
from nodule_plugin.insertion.mask_shapes import longest_diameter_mm
from nodule_plugin.prompts import TEMPLATES, prompt_to_ratings

Shape = tuple[int, int, int]
MaskDrawer = Callable[[Findings, float, Triple, Shape, torch.Generator], np.ndarray]
"""``(findings, diameter_mm, spacing_mm, shape, generator)`` -> (D, H, W) float32 in [0, 1], a nodule in the middle."""

PASTED_ON = Grid((1.0, 0.6, 0.6), (48, 80, 80), (-1024.0, 3071.0))
"""The grid of real nodules: as fine as most scans, and all that they can hold."""
UNKNOWN = Findings(sphericity=4, margin=4, texture=5, spiculation=1)
"""The shape of a nodule of which a prompt says nothing that a template has: the most frequent one."""


@dataclass(frozen=True)
class Asked:
    """Which nodule a source is asked for.

    Attributes:
        prompt: its findings in words.
        diameter_mm: its greatest extent in an axial slice.
        guidance_scale: of classifier-free guidance; 1 is the prompt alone.
        steps: of the sampling.
        seed: decides the noise, and with it the result: the same one gives the same nodule.
    """

    prompt: str
    diameter_mm: float
    guidance_scale: float
    steps: int
    seed: int


class NoduleSource(Protocol):
    """What makes the pixels of a nodule in given surroundings.

    Attributes:
        grid: the samples that it works on, and what Hounsfield units it can make.
        model: ``name``, ``hash`` and ``revision`` (of a hub's), for manifests and DICOM.
    """

    @property
    def grid(self) -> Grid: ...

    @property
    def model(self) -> dict[str, Any]: ...

    def __call__(self, host_hu: Tensor, mask: Tensor, asked: Asked) -> Tensor:
        """The surroundings with a nodule in them.

        Args:
            host_hu: (D, H, W) Hounsfield units on the grid.
            mask: (D, H, W) in [0, 1], where the nodule is to be.
            asked: which nodule.

        Returns:
            (D, H, W) Hounsfield units.
        """
        ...


def findings_of(prompt: str) -> Findings | None:
    """The findings that a prompt in a template's wording states; None for other prompts."""
    for template in TEMPLATES:
        try:
            return Findings.from_dict({"calcification": 6, **prompt_to_ratings(prompt, template)})
        except InputError:
            continue
    return None


@dataclass(frozen=True)
class CopyPaste:
    """Real nodules, pasted: what every other source is compared with, and no model.

    A nodule is chosen by its findings and size, one of the :attr:`nearest` by the seed, and enlarged or reduced to the
    diameter that is asked for. Its own mask is the mask. For the choice a size counts in steps of a third, so that a
    diameter that is corrected a little mostly chooses the same nodule.

    Attributes:
        nodules: file of the crop, findings and diameter (mm) of each; the mask is the file of the same name in the
            folder ``masks`` beside ``images``.
        model, grid: see :class:`NoduleSource`; the hash is the table's.
        nearest: how many nodules the seed chooses from.
    """

    nodules: tuple[tuple[Path, Findings, float], ...]
    model: dict[str, Any]
    grid: Grid = PASTED_ON
    nearest: int = 5

    @classmethod
    def from_folder(cls, folder: str | Path | None) -> CopyPaste:
        """A folder of crops as :mod:`nodule_plugin.data.crops` describes it, with masks.

        Raises:
            InputError: if its table cannot be read, is empty, or there are no masks.
        """
        if folder is None:
            raise InputError("crops: a folder of real nodules with masks is needed to paste from")
        root = Path(folder)
        nodules = tuple(crop_table(root))
        if not nodules or not (root / "masks").is_dir():
            raise InputError(f"crops: {root} lists no nodule or holds no masks; give a folder of crops with masks")
        digest = hashlib.sha256((root / TABLE).read_bytes()).hexdigest()
        return cls(nodules, {"name": "copy-paste of crops", "hash": digest, "revision": None})

    def draw_mask(
        self, findings: Findings, diameter_mm: float, spacing_mm: Triple, shape: Shape, generator: torch.Generator
    ) -> np.ndarray:
        """The mask of the nodule that a call with the findings' prompt and the generator's seed pastes."""
        crop = self._choose(findings, diameter_mm, generator.initial_seed())
        return np.clip(crop.on_grid(crop.mask, diameter_mm, spacing_mm, shape), 0, 1)

    def __call__(self, host_hu: Tensor, mask: Tensor, asked: Asked) -> Tensor:
        """A real nodule and what is next to it, faded out over :data:`_FADED_MM`; guidance and steps do not count."""
        crop = self._choose(findings_of(asked.prompt) or UNKNOWN, asked.diameter_mm, asked.seed)
        shape: Any = tuple(host_hu.shape)
        pasted, known = (
            crop.on_grid(values, asked.diameter_mm, self.grid.spacing_mm, shape)
            for values in (crop.hu, np.ones_like(crop.mask))
        )
        distance = distance_transform_edt(mask.numpy() < 0.1, sampling=self.grid.spacing_mm)
        opacity = np.clip(1 - distance / _FADED_MM, 0, 1) * (known > 0.99)
        return host_hu + torch.from_numpy(opacity.astype(np.float32)) * (torch.from_numpy(pasted) - host_hu)

    def _choose(self, findings: Findings, diameter_mm: float, seed: int) -> _Crop:
        step = math.log(4 / 3)
        size = step * round(math.log(diameter_mm) / step)

        def difference(nodule: tuple[Path, Findings, float]) -> float:
            _, own, diameter = nodule
            ratings = sum(abs(getattr(own, name) - getattr(findings, name)) for name in _SHAPING)
            return ratings + 8 * abs(math.log(diameter) - size) + 4 * (own.calcified != findings.calcified)

        nearest = sorted(self.nodules, key=difference)[: self.nearest]
        return _read_crop(nearest[seed % len(nearest)][0])


_SHAPING = ("sphericity", "margin", "texture", "spiculation")
_FADED_MM = 1.5


@dataclass(frozen=True, eq=False)
class _Crop:
    """A nodule, (slices, rows, columns), its mask's middle there, its spacing and its own diameter, mm."""

    hu: np.ndarray
    mask: np.ndarray
    centre: np.ndarray
    spacing: np.ndarray
    diameter_mm: float

    def on_grid(self, values: np.ndarray, diameter_mm: float, spacing_mm: Triple, shape: Shape) -> np.ndarray:
        """Values of the crop's voxels, scaled to a diameter, with the nodule in the middle of a grid; 0 beyond."""
        to_crop = np.array(spacing_mm) / self.spacing * (self.diameter_mm / diameter_mm)
        offset = self.centre - to_crop * (np.array(shape) - 1) / 2
        return affine_transform(values, to_crop, offset, shape, order=1, mode="constant").astype(np.float32)


@lru_cache(maxsize=8)  # a mask is drawn, then its nodule is pasted
def _read_crop(image: Path) -> _Crop:
    volume, mask = read_volume(image), read_volume(image.parent.parent / "masks" / image.name)
    if volume.voxels.shape != mask.voxels.shape or not mask.voxels.any():
        raise InputError(f"crops: the mask of {image} is empty or not on its grid; leave the nodule out of the table")
    hu, inside = (np.asarray(part.voxels.transpose(2, 1, 0), np.float32) for part in (volume, mask))
    inside = (inside > 0).astype(np.float32)
    spacing = np.array(volume.spacing[::-1])
    diameter = longest_diameter_mm(inside, tuple(spacing))
    return _Crop(hu, inside, np.array(center_of_mass(inside)), spacing, diameter)
