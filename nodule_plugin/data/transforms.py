"""The one chain from an item of the data list to pixels: its slice, the window, the region on the output's grid.

Whatever looks at a nodule's pixels (training, validation, evaluation, classifiers, reader study, pages) goes through
:func:`nodule_transform`; :func:`chain_id` names how it cuts, and only images of one chain may be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from PIL import Image

from nodule_plugin.data.nifti import read_plane
from nodule_plugin.data.orientation import SHOWN, turned
from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window, hu_to_unit
from nodule_plugin.errors import InputError
from nodule_plugin.settings import LARGEST_SIDE, whole_number

AIR_HU = -1000.0
"""What fills a region of interest where the image ends first."""
LOWEST_HU = -1024.0
"""Lower values mark what lies outside the scanner's round field of view (-2048, -3024): they are no attenuation."""


def read_slice(path: Path, slice_index: int | None, axes: str = SHOWN) -> np.ndarray:
    """One slice in Hounsfield units, (rows, columns) float32, at least :data:`LOWEST_HU`.

    There is no upper limit: metal reaches several thousand HU.

    Args:
        path: a NIfTI volume, or one DICOM instance.
        slice_index: of the volume's slices, from below; None for a DICOM instance.
        axes: how the file's axes run, as the data list's item says: the slice is turned so that its columns run to the
            patient's left and its rows to the back. The default, and data lists of earlier versions, take it as stored.

    Raises:
        InputError: if the file is missing, damaged, compressed in a way that cannot be decoded, or has no such slice,
            or the slice has values that are not finite.
    """
    if not path.is_file():
        raise InputError(f"image: there is no file {path}; check dataset_dir, or run prepare again")
    try:
        hu = _read_dicom(path, axes) if slice_index is None else read_plane(path, slice_index, axes)
    except InputError as error:
        raise InputError(f"image: {error}") from error
    if not np.isfinite(hu).all():
        raise InputError(f"image: {path} has values that are not finite; correct it, or leave it out")
    return np.maximum(hu, np.float32(LOWEST_HU))


def _read_dicom(path: Path, axes: str) -> np.ndarray:
    # Only here: NIfTI, and training from a cache of latents, need no DICOM reader.
    import pydicom
    from pydicom.errors import InvalidDicomError

    from nodule_plugin.lidc.dicom_header import (
        RAISED_BY_DAMAGE,
        BrokenFile,
        check_decoder,
        check_inflated_size,
        check_rescale,
        check_size,
    )

    try:
        check_inflated_size(path)
        instance = pydicom.dcmread(path)
        check_size(instance)
        check_rescale(instance)
        check_decoder(instance.file_meta.TransferSyntaxUID)
        pixels = instance.pixel_array.astype(np.float32)
        hu = pixels * float(instance.RescaleSlope) + float(instance.RescaleIntercept)
    except BrokenFile as error:
        raise InputError(f"{path}: {error}") from error
    except InvalidDicomError as error:  # its own text is for programmers
        raise InputError(f"{path} cannot be read as a DICOM image: it is none; check the path") from error
    except (RuntimeError, OSError, MemoryError, *RAISED_BY_DAMAGE) as error:
        raise InputError(f"{path} cannot be read as a DICOM image: {error}") from error
    if hu.ndim != 2:
        raise InputError(f"{path} has pixels of shape {hu.shape}; one slice is needed")
    return turned(hu.T[:, :, None], axes)[:, :, 0].T


KERNELS = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC}
"""Of resampling; both are widened to a low-pass where the region shrinks (Pillow: triangle; Keys' cubic, a = -0.5)."""
DEFAULT_KERNEL = "cubic"
"""Invents no texture: at 25 pixels a region, the kinks that linear interpolation leaves are seen by every network."""
CHAIN_VERSION = 2
"""Goes up with any change of the pixels. Version 1 cut first and then enlarged: the outermost rows came twice."""


def chain_id(kernel: str = DEFAULT_KERNEL) -> str:
    """Name and version of the chain with this kernel, such as ``roi-cubic-2``; equal names, equal pixels.

    Raises:
        InputError: if there is no such kernel.
    """
    if kernel not in KERNELS:
        raise InputError(f"resample_kernel: there is no {kernel!r}; choose one of {', '.join(KERNELS)}")
    return f"roi-{kernel}-{CHAIN_VERSION}"


def chain_kernel(chain: str | None) -> str:
    """The kernel of a chain by its name; the default for None, which files of before chains have.

    Raises:
        InputError: if this release does not cut so.
    """
    if chain is None:
        return DEFAULT_KERNEL
    for kernel in KERNELS:
        if chain == chain_id(kernel):
            return kernel
    known = ", ".join(map(chain_id, KERNELS))
    raise InputError(f"chain: this release does not cut images by {chain!r} but by {known}")


def nodule_transform(
    image_size: int | Sequence[int], window_hu: Sequence[float] = DEFAULT_WINDOW_HU, kernel: str = DEFAULT_KERNEL
) -> NoduleROId:
    """The chain with its settings checked.

    Args:
        image_size: (H, W) of the result, or its side.
        window_hu: (lower, upper) end of the window.
        kernel: of the resampling, a name in :data:`KERNELS`.

    Raises:
        InputError: if a setting makes no sense.
    """
    sides = image_size if isinstance(image_size, list | tuple) else [image_size] * 2
    rows, columns = (whole_number("image_size", side, most=LARGEST_SIDE) for side in sides)
    return NoduleROId((rows, columns), checked_window(window_hu), kernel, chain_id(kernel))


@dataclass(frozen=True)
class NoduleROId(Transform):
    """From an item of a data list to its ``image``, (3, H, W) float32 in [-1, 1], three equal channels.

    Loads the one slice that the item points to, never the whole series, and resamples its region of interest, see
    :func:`nodule_plugin.data.roi.roi_bounds` and :func:`resample_roi`. Of the item's other fields ``prompt`` and ``id``
    are kept. Made by :func:`nodule_transform`; what it cannot read raises :func:`read_slice`'s errors.

    An item needs ``image``, ``slice_index`` and, unless the file's axes run as they are shown, ``axes``, all as
    :func:`read_slice` takes them; ``centre`` (row, column) in pixels of the slice as shown; ``spacing`` (row, column)
    in mm; ``roi_mm``, the side of the square.
    """

    image_size: tuple[int, int]
    window_hu: tuple[float, float]
    kernel: str
    chain: str

    def __call__(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        hu = read_slice(Path(data["image"]), data["slice_index"], data.get("axes", SHOWN))
        bounds = roi_bounds(tuple(data["centre"]), tuple(data["spacing"]), data["roi_mm"])
        region = resample_roi(hu, bounds, self.image_size, self.window_hu, self.kernel)
        kept = {name: data[name] for name in ("prompt", "id") if name in data}
        return {"image": torch.from_numpy(region).repeat(3, 1, 1), **kept}


def resample_roi(
    hu: np.ndarray,
    bounds: tuple[float, float, float, float],
    size: tuple[int, int],
    window_hu: Sequence[float] = DEFAULT_WINDOW_HU,
    kernel: str | Image.Resampling = DEFAULT_KERNEL,
) -> np.ndarray:
    """A region of a slice through the window, on a grid of ``size`` that divides exactly this region.

    The kernel reads the pixels around the region too, so that enlarging leaves no trace at its edge; where the slice
    itself ends, the weights of the pixels that there are sum to 1. The window comes first: metal or bone of thousands
    of HU then darkens its neighbours no more than the window's upper end would. What a cubic kernel overshoots (2/27 of
    a step along an axis) is cut off at the window's ends.

    Args:
        hu: (rows, columns) in Hounsfield units.
        bounds: of the region, as :func:`nodule_plugin.data.roi.roi_bounds` gives them; fractions of pixels will do
            within the slice. Where whole pixels reach beyond it there is air.
        size: (H, W) of the result.
        window_hu: (lower, upper) end of the window.
        kernel: a name in :data:`KERNELS`, which the chain is made with, or another one of Pillow's.

    Returns:
        (H, W) float32 in [-1, 1].
    """
    top, bottom, left, right = bounds
    outside = -top, bottom - hu.shape[0], -left, right - hu.shape[1]
    above, below, before, after = (max(math.ceil(pixels), 0) for pixels in outside)
    beyond = (above, below), (before, after)
    unit = hu_to_unit(np.pad(hu, beyond, constant_values=AIR_HU) if np.any(beyond) else hu, window_hu)
    box = (left + before, top + above, right + before, bottom + above)
    return resized(unit, size, kernel, box)


def resized(
    unit: np.ndarray,
    size: tuple[int, int],
    kernel: str | Image.Resampling = DEFAULT_KERNEL,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """(rows, columns) values in [-1, 1] on a grid of ``size`` (H, W), which divides ``box`` (left, top, right, bottom).

    Of the size that it has already, the whole comes back as it is.
    """
    if box is None and unit.shape == size:
        return unit
    chosen = KERNELS[kernel] if isinstance(kernel, str) else kernel
    return np.asarray(Image.fromarray(unit).resize(size[::-1], chosen, box)).clip(-1, 1)


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
