"""NIfTI files that somebody else may have written: sizes first, faults named, axes turned as slices are shown."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from nodule_plugin.data.orientation import SHOWN, directions, stored_axes, turned
from nodule_plugin.errors import InputError

NIFTI = (".nii", ".nii.gz")
"""How the names of such files end."""
DESCRIPTION = b"SYNTHETIC, not for diagnosis"
"""What a generated file says of itself in its header."""
LARGEST_VOLUME = 2**30
"""Bytes of the largest volume that is read, in memory: 1,024 slices of 512 x 512 voxels of up to 32 bits."""
_LARGEST_OFFSET = 2**20
"""Bytes before the first voxel: header extensions are read into memory."""
_OBLIQUE = 0.9
"""Least cosine between a volume's axis and the patient's: below it (25 degrees) the slices are not axial."""


@dataclass(frozen=True)
class Volume:
    """A whole volume.

    Attributes:
        voxels: (x, y, z), axes as :data:`nodule_plugin.data.orientation.SHOWN` says.
        spacing: (x, y, z) mm.
        axes: how the axes run in the file.
        doubts: what the header leaves open or says twice; half sentences.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    axes: str
    doubts: tuple[str, ...]


def open_nifti(path: Path) -> Any:
    """A file as nibabel's image, its header checked and none of its voxels read.

    Raises:
        InputError: if there is no such file, it is not NIfTI, or its header says that it is larger than
            :data:`LARGEST_VOLUME`, holds no numbers, or measures in other units than mm.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; put it there, or take it off the list")
    with _faults_named(path):
        # Not nibabel.load first: it reads extensions of any size, and a compressed file need not be large for that.
        with ImageOpener(str(path)) as file:
            start = file.read(nibabel.Nifti2Header.sizeof_hdr)
        kinds = [kind for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header) if kind.may_contain_header(start)]
        if not kinds:
            raise ImageFileError("no NIfTI header")
        header = kinds[0](start[: kinds[0].sizeof_hdr], check=False)
        _check_header(path, header)
        return nibabel.load(path)


def _check_header(path: Path, header: Any) -> None:
    shape, kind = header.get_data_shape(), header.get_data_dtype()
    if kind.kind not in "iuf":
        raise InputError(f"{path} holds voxels of the kind {kind}; one number a voxel is needed")
    scaled = header.get_slope_inter() not in ((None, None), (1.0, 0.0))
    size = math.prod(shape) * (8 if scaled else max(kind.itemsize, 4))
    if size > LARGEST_VOLUME or not 0 <= float(header["vox_offset"]) <= _LARGEST_OFFSET:
        raise InputError(
            f"{path} is of {size:,} bytes by its header (shape {shape}), more than {LARGEST_VOLUME:,}; cut the volume"
        )
    if path.suffix == ".nii" and path.stat().st_size < float(header["vox_offset"]) + math.prod(shape) * kind.itemsize:
        raise ImageFileError(f"shorter than shape {shape} by its header")
    zooms = [float(size) for size in header.get_zooms()]
    if not all(0 < abs(size) < math.inf for size in zooms):  # nibabel would read 0 as 1
        raise InputError(f"{path} has voxels of {' x '.join(f'{size:g}' for size in zooms)} mm; mend its header")
    units = header.get_xyzt_units()[0]
    if units not in ("mm", "unknown"):
        raise InputError(f"{path} measures in the unit {units}; mm are needed")


def read_voxels(path: Path) -> np.ndarray:
    """All of a file's values, as they are stored, float32.

    Raises:
        InputError: as :func:`open_nifti` does, or if the file is not whole.
    """
    image = open_nifti(path)
    with _faults_named(path):
        return np.asarray(image.dataobj, dtype=np.float32)


def read_volume(path: Path) -> Volume:
    """A whole volume, turned, so that a file that was cut short is known.

    Raises:
        InputError: as :func:`open_nifti` does; or if the file is not whole, is no volume, or has an affine that places
            no voxel.
    """
    image = open_nifti(path)
    if len(image.shape) != 3:
        raise InputError(f"{path} has shape {image.shape}; a volume (x, y, z) is needed")
    spacing = np.array(image.header.get_zooms(), dtype=float)
    axes = directions(image.affine)
    if axes is None:
        raise InputError(f"{path} has an affine that does not say where its voxels are; mend its header")
    stated = int(image.header["qform_code"]) or int(image.header["sform_code"])
    doubts = _doubts(image.affine, spacing) if stated else ["no direction of its axes in the header: taken for LPS"]
    with _faults_named(path):
        voxels = np.asanyarray(image.dataobj)
    axes = axes if stated else SHOWN
    x, y, z = spacing[list(stored_axes(axes))].tolist()
    return Volume(turned(voxels, axes), (x, y, z), axes, tuple(doubts))


def _doubts(affine: np.ndarray, spacing: np.ndarray) -> list[str]:
    sizes = voxel_sizes(affine)
    doubts = []
    if not np.allclose(sizes, spacing, rtol=0.01):
        doubts.append("voxel sizes (pixdim) that are not those of its affine")
    if np.abs(affine[:3, :3] / sizes).max(axis=0).min() < _OBLIQUE:
        doubts.append("axes more than 25 degrees off the patient's: its slices are not axial")
    return doubts


def read_plane(path: Path, index: int, axes: str = SHOWN) -> np.ndarray:
    """One axial slice, (rows, columns) float32, turned.

    Args:
        path: of a volume.
        index: of the slice, from below, in the turned volume.
        axes: how the file's axes run. The default reads them as they are stored.

    Raises:
        InputError: as :func:`open_nifti` does; or if the file is not whole, or has no such slice.
    """
    image = open_nifti(path)
    through = stored_axes(axes)[2]
    depth = image.shape[through] if len(image.shape) == 3 else 0
    if not 0 <= index < depth:
        raise InputError(f"{path} has shape {image.shape} and no slice {index} along its axis {through + 1}")
    stored = [slice(None), slice(None), slice(None)]
    first = depth - 1 - index if axes[through] == "I" else index
    stored[through] = slice(first, first + 1)
    with _faults_named(path):
        plane = np.asarray(image.dataobj[tuple(stored)], dtype=np.float32)
    return turned(plane, axes)[:, :, 0].T


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (
        *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, KeyError, OverflowError),
        *(MemoryError, zlib.error),
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a whole NIfTI file ({reason}); get it anew") from error


def encode_volume(
    voxels: np.ndarray,
    affine: np.ndarray,
    origin: Mapping[str, Any],
    description: bytes = DESCRIPTION,
    compression: int = 9,
) -> bytes:
    """A compressed NIfTI-1 whose header says what it is and what made it.

    Args:
        voxels: (x, y, z), of the type that is stored.
        affine: (4, 4), from voxels to NIfTI's coordinates (RAS, mm).
        origin: stored as JSON in a header extension of the kind "comment".
        description: at most 79 bytes.
        compression: 1 (fast) to 9 (small).
    """
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", json.dumps(origin).encode()))
    # A time stamp in the compressed file would make equal images unequal files.
    return gzip.compress(image.to_bytes(), compression, mtime=0)
