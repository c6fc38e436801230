"""Nodules of a folder of crops, with their masks, as training samples of an inpainting model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from nodule_plugin.data.nifti import read_volume
from nodule_plugin.data.order import SampleKey, sample_seed, seeded_generator
from nodule_plugin.data.transforms import LOWEST_HU, ORIENTATIONS, orient
from nodule_plugin.data.window import hu_to_unit
from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings
from nodule_plugin.insertion.grid import Grid, Triple, on_grid
from nodule_plugin.insertion.mask_shapes import longest_diameter_mm
from nodule_plugin.insertion.region import MARGIN_MM, painted_region
from nodule_plugin.prompts import TEMPLATES, findings_to_prompt

_logger = logging.getLogger(__name__)
MARGINS_MM = (1.5, 3.5)
"""Least and greatest margin of what a training sample has painted, see :data:`MARGIN_MM`."""
SHIFT_MM = 2.0
"""How far a training sample's nodule may lie off the grid's centre."""
SMOOTHING_MM = 1.2
"""Greatest deviation of the Gaussian that smooths half of the training masks: drawn ones have no readers' corners."""


@dataclass(frozen=True)
class Crop:
    """A nodule's surroundings.

    Attributes:
        unit: (slices, rows, columns) float32, through the window.
        mask: (slices, rows, columns) float32, 0 or 1.
        spacing_mm: (z, y, x).
        centre: (slice, row, column) of the mask's box.
        extent_mm: (z, y, x) of the mask's box.
        item: of the data list.
    """

    unit: np.ndarray
    mask: np.ndarray
    spacing_mm: Triple
    centre: Triple
    extent_mm: Triple
    item: Mapping[str, Any]


def read_crop(item: Mapping[str, Any], window_hu: tuple[float, float]) -> Crop:
    """The crop and the mask of an item.

    Args:
        item: of a data list of crops, ``image`` absolute; its mask has the same name in the folder ``masks`` beside.
        window_hu: of the result.

    Raises:
        InputError: if a file is missing or damaged, or the mask is empty or of another shape.
    """
    image = Path(item["image"])
    file = image.parents[1] / "masks" / image.name
    if not file.is_file():
        raise InputError(f"{item['id']}: there is no mask {file}; inserting nodules is learnt from crops with masks")
    volume, mask = read_volume(image), read_volume(file).voxels > 0
    if mask.shape != volume.voxels.shape or not mask.any():
        raise InputError(f"{file}: a mask that is not empty, of the image's shape {volume.voxels.shape}, is needed")
    spacing = _reversed(volume.spacing)
    marked = np.argwhere(mask.T)
    low, high = marked.min(0), marked.max(0) + 1
    hu = np.maximum(volume.voxels.T.astype(np.float32), LOWEST_HU)
    return Crop(
        np.ascontiguousarray(hu_to_unit(hu, window_hu)),
        np.ascontiguousarray(mask.T.astype(np.float32)),
        spacing,
        _triple((low + high - 1) / 2),
        _triple((high - low) * spacing),
        item,
    )


def fits(crop: Crop, grid: Grid) -> bool:
    """Whether the nodule lies within the grid; along an axis of one voxel it need not."""
    return all(count == 1 or e <= whole for e, whole, count in zip(crop.extent_mm, grid.extent_mm, grid.shape))


class GridDataset(Dataset):
    """Items of a data list of crops as samples on a model's grid, all of them kept in memory.

    Nodules that do not fit are left out. Asked with a :class:`~nodule_plugin.data.order.SampleKey` it draws the
    sample's place on the grid, orientation, margin, outline and wording with the sample's own random numbers; asked
    with a number it gives the nodule as it is.

    Args:
        data: items of a data list.
        grid: of the model.
        augment: False keeps every nodule as it is.

    A sample holds ``id``, ``prompt``, ``diameter_mm`` (the longest within a slice, of its mask), ``seed``, ``weight``
    and, each (D, H, W): ``image`` float32 in [-1, 1], ``nodule`` (its mask, fractions of voxels), ``region`` (bool,
    what is to be painted) and ``known`` (bool, where the crop reaches).

    Raises:
        InputError: as :func:`read_crop` does, or if no nodule fits.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], grid: Grid, augment: bool = True) -> None:
        crops = [read_crop(item, grid.window_hu) for item in tqdm(data, desc="crops", disable=not data)]
        super().__init__([crop for crop in crops if fits(crop, grid)])
        if data and not self.data:
            raise InputError(f"grid_shape: none of {len(data)} nodules fits {grid.extent_mm} mm; give a larger one")
        if len(self.data) < len(data):
            _logger.info("%d of %d nodules left out: larger than the grid", len(data) - len(self.data), len(data))
        self.grid = grid
        self.augment = augment

    def __getitem__(self, index: int | SampleKey) -> dict[str, Any]:
        if isinstance(index, SampleKey):
            return self._sample(index, self.augment)
        return self._sample(SampleKey(index, sample_seed(index), 1.0), False)

    def _sample(self, key: SampleKey, augment: bool) -> dict[str, Any]:
        crop: Crop = self.data[key.item]
        generator = seeded_generator(key.seed)
        drawn = torch.rand(8, generator=generator).tolist() if augment else [0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0]
        centre = self._centre(crop, drawn[:3])
        image, known = on_grid(crop.unit, crop.spacing_mm, centre, self.grid)
        nodule, _ = on_grid(crop.mask, crop.spacing_mm, centre, self.grid, "linear")
        if drawn[6] >= 0.5:
            nodule = smoothed(nodule, SMOOTHING_MM * (2 * drawn[6] - 1), self.grid)
        margin = MARGIN_MM if not augment else MARGINS_MM[0] + drawn[5] * (MARGINS_MM[1] - MARGINS_MM[0])
        volumes = {
            "image": image,
            "nodule": nodule,
            "region": painted_region(nodule, self.grid.spacing_mm, margin) & known,
            "known": known,
        }
        orientation, upside_down = int(drawn[3] * ORIENTATIONS), drawn[4] >= 0.5
        wordings = [crop.item["prompt"]]
        if augment:
            findings = Findings.from_dict(crop.item["findings"])
            wordings += [findings_to_prompt(findings, name) for name in TEMPLATES]
        return {
            "id": crop.item["id"],
            "prompt": wordings[int(drawn[7] * len(wordings))],
            "diameter_mm": longest_diameter_mm(nodule, self.grid.spacing_mm),
            "seed": key.seed,
            "weight": key.weight,
            **{name: _turned(volume, orientation, upside_down) for name, volume in volumes.items()},
        }

    def _centre(self, crop: Crop, drawn: Sequence[float]) -> Triple:
        """Where the grid's centre lies in the crop: off the nodule's, which stays within the grid.

        Along an axis along which the grid is the smaller one, it lies anywhere within the nodule.
        """
        centre = []
        for middle, step, extent, whole, part in zip(
            crop.centre, crop.spacing_mm, crop.extent_mm, self.grid.extent_mm, drawn
        ):
            room = abs(whole - extent) / 2
            reach = min(room, SHIFT_MM) if extent <= whole else room
            centre.append(middle + (2 * part - 1) * reach / step)
        return _triple(centre)


def smoothed(nodule: np.ndarray, deviation_mm: float, grid: Grid) -> np.ndarray:
    """A mask with a smoother outline and (about) the same volume, (D, H, W) fractions of voxels."""
    blurred = gaussian_filter(nodule, [0, *(deviation_mm / step for step in grid.spacing_mm[1:])])
    # Of the values that there are the one above which as much volume lies; then an edge a voxel wide again.
    threshold = np.sort(blurred.ravel())[-max(1, round(float(nodule.sum())))]
    return np.clip(0.5 + 3 * (blurred - threshold), 0, 1).astype(np.float32)


def _turned(volume: np.ndarray, orientation: int, upside_down: bool) -> torch.Tensor:
    turned = orient(torch.from_numpy(volume), orientation)
    return (turned.flip(0) if upside_down else turned).contiguous()


def _triple(numbers: Any) -> Triple:
    z, y, x = (float(number) for number in numbers)
    return z, y, x


def _reversed(numbers: Triple) -> Triple:
    return numbers[2], numbers[1], numbers[0]
