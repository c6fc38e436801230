"""MONAI dictionary transforms from an item of the data list to its region of interest in Hounsfield units."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from nibabel.filebasedimages import ImageFileError
from pydicom.errors import InvalidDicomError

from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.dicom_header import BrokenFile, check_decoder

AIR_HU = -1000.0
"""What fills a region of interest where the image ends first."""
LOWEST_HU = -1024.0
"""Lower values mark what lies outside the scanner's round field of view (-2048, -3024): they are no attenuation."""


def read_slice(path: Path, slice_index: int | None) -> np.ndarray:
    """One slice in Hounsfield units, (rows, columns) float32, at least :data:`LOWEST_HU`.

    There is no upper limit: metal reaches several thousand HU.

    Args:
        path: a NIfTI volume with axes (x, y, z), or one DICOM instance.
        slice_index: along the volume's z axis; None for a DICOM instance.

    Raises:
        InputError: if the file is missing, damaged, compressed in a way that cannot be decoded, or has no such slice.
    """
    if not path.is_file():
        raise InputError(f"image: there is no file {path}; check dataset_dir, or run prepare again")
    hu = _read_dicom(path) if slice_index is None else _read_nifti(path, slice_index)
    return np.maximum(hu, np.float32(LOWEST_HU))


def _read_dicom(path: Path) -> np.ndarray:
    try:
        instance = pydicom.dcmread(path)
        check_decoder(instance.file_meta.TransferSyntaxUID)
        pixels = instance.pixel_array.astype(np.float32)
        return pixels * float(instance.RescaleSlope) + float(instance.RescaleIntercept)
    except BrokenFile as error:
        raise InputError(f"image: {path}: {error}") from error
    except (InvalidDicomError, AttributeError, ValueError, RuntimeError, OSError, EOFError) as error:
        raise InputError(f"image: {path} cannot be read as a DICOM image: {error}") from error


def _read_nifti(path: Path, slice_index: int) -> np.ndarray:
    try:
        volume: Any = nibabel.load(path)
        depth = volume.shape[2] if len(volume.shape) == 3 else 0
        if not 0 <= slice_index < depth:
            raise InputError(f"image: {path} has shape {volume.shape} and no slice {slice_index} along its third axis")
        return np.asarray(volume.dataobj[:, :, slice_index], dtype=np.float32).T
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"image: {path} cannot be read as a NIfTI volume: {error}") from error


class LoadNoduleSliced(MapTransform):
    """Load the one slice an item of the data list points to, never the whole series.

    The item's path under each key becomes a (1, rows, columns) float32 MetaTensor in Hounsfield units. Uses the item's
    ``slice_index``, see :func:`read_slice`.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            pixels = read_slice(Path(item[key]), item["slice_index"])
            item[key] = MetaTensor(torch.from_numpy(pixels)[None], meta={"filename_or_obj": str(item[key])})
        return item


class CropNoduleROId(MapTransform):
    """Cut the square region of interest around the nodule, (1, rows, columns) to (1, side, side).

    Uses the item's ``centre``, ``spacing`` and ``roi_mm`` by the rule of :func:`nodule_plugin.data.roi.roi_bounds`.
    Where the image ends first the rest is filled with air; the item's ``padding`` tells how much that is.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        bounds = roi_bounds(tuple(item["centre"]), tuple(item["spacing"]), item["roi_mm"])
        for key in self.key_iterator(item):
            item[key] = crop_padded(item[key], bounds)
        return item


def crop_padded(image: torch.Tensor, bounds: tuple[int, int, int, int], fill: float = AIR_HU) -> torch.Tensor:
    """The pixels of ``image`` (C, rows, columns) within ``bounds``, ``fill`` beyond its edges."""
    row_start, row_stop, column_start, column_stop = bounds
    rows, columns = image.shape[-2:]
    inside = image[..., max(row_start, 0) : max(row_stop, 0), max(column_start, 0) : max(column_stop, 0)]
    padding = (max(-column_start, 0), max(column_stop - columns, 0), max(-row_start, 0), max(row_stop - rows, 0))
    return torch.nn.functional.pad(inside, padding, value=fill) if any(padding) else inside


ORIENTATIONS = 8
"""Four rotations, each as it is and flipped: the reference method's augmentation."""


def orient(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """``image`` (..., rows, columns) in one of eight orientations; 0 leaves it as it is.

    Args:
        image: square.
        orientation: 0 to 3 turn by so many right angles; 4 to 7 turn likewise and then flip left and right.
    """
    turned = image.rot90(orientation % 4, (-2, -1))
    return turned.flip(-1) if orientation >= 4 else turned
