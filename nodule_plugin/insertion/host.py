"""The CT series that a nodule is put into: stored values, Hounsfield units, and where its voxels lie in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from nodule_plugin.data.hounsfield import not_hounsfield
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.dicom_header import RAISED_BY_DAMAGE
from nodule_plugin.lidc.series import Series, index_series
from nodule_plugin.provenance.parity_mark import rounded

_GAP = 1.5
"""Of the usual distance between slices: where two are farther apart, one is missing."""
_OFF_LINE_MM = 0.1
"""Farthest that a slice may lie from where evenly spaced ones do; positions are stored rounded."""


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a stack of parallel, evenly spaced slices lie.

    Attributes:
        matrix: (4, 4), from (slice, row, column, 1) to the patient's (x, y, z, 1), mm (PS3.3 C.7.6.2.1.1). Slices that
            a tilted gantry shifts against each other make it oblique.
        shape: (slices, rows, columns).
        thickness: of a slice, mm: how far the tissue reaches that it shows.
    """

    matrix: np.ndarray
    shape: tuple[int, int, int]
    thickness: float

    @cached_property
    def spacing(self) -> np.ndarray:
        """Distance between neighbouring slices (along the normal), rows and columns, mm."""
        row, column = self.matrix[:3, 1], self.matrix[:3, 2]
        normal = np.cross(row, column) / np.linalg.norm(np.cross(row, column))
        return np.array([abs(normal @ self.matrix[:3, 0]), np.linalg.norm(row), np.linalg.norm(column)])

    def to_patient(self, index: Sequence[float] | np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices (slice, row, column) as (x, y, z), mm."""
        return np.asarray(index, dtype=float) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def to_voxel(self, point: Sequence[float] | np.ndarray) -> np.ndarray:
        """(..., 3) points (x, y, z), mm, as voxel indices (slice, row, column), not rounded."""
        return (np.asarray(point, dtype=float) - self.matrix[:3, 3]) @ np.linalg.inv(self.matrix[:3, :3]).T

    def nifti_affine(self) -> np.ndarray:
        """(4, 4), from (column, row, slice, 1) to NIfTI's coordinates (right, front, head; mm)."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.matrix[:, [2, 1, 0, 3]]


@dataclass(frozen=True, eq=False)
class Host:
    """A series with its pixels.

    Attributes:
        slices: the files' contents, by ascending position along the normal.
        stored: (rows, columns) of each, as stored.
        geometry: of the stack.
    """

    slices: Sequence[Dataset]
    stored: Sequence[np.ndarray]
    geometry: Geometry

    @property
    def described(self) -> dict[str, Any]:
        """Which series it is, as manifests hold it, and whether it says of itself that it is synthetic."""
        synthetic = any(item.get("SyntheticData") == "YES" for item in self.slices)
        uid = str(self.slices[0].SeriesInstanceUID)
        return {"series_instance_uid": uid, "slices": len(self.slices), "synthetic": synthetic}

    @cached_property
    def _rescale(self) -> np.ndarray:
        """(2, slices): slope and intercept of each."""
        return np.array([[float(item.RescaleSlope), float(item.RescaleIntercept)] for item in self.slices]).T

    @cached_property
    def hu(self) -> np.ndarray:
        """(slices, rows, columns) float32 Hounsfield units."""
        return self.rescaled(self.stored)

    @property
    def has_whole_hu(self) -> bool:
        """Whether steps of the stored values are Hounsfield units, and all of these are whole."""
        slope, intercept = self._rescale
        return bool((slope == 1).all() and (intercept == np.rint(intercept)).all())

    @cached_property
    def padding(self) -> np.ndarray:
        """(slices, rows, columns) bool: what the scanner did not fill (Pixel Padding Value, PS3.3 C.7.5.1.1.2)."""
        return np.stack([_padded(item, stored) for item, stored in zip(self.slices, self.stored)])

    def rescaled(self, stored: Sequence[np.ndarray]) -> np.ndarray:
        """Stored values of all slices as (slices, rows, columns) float32 Hounsfield units."""
        slope, intercept = self._rescale.astype(np.float32)[:, :, None, None]
        hu = np.stack(stored).astype(np.float32)
        hu *= slope
        hu += intercept
        return hu

    def to_stored(self, hu: np.ndarray, parity: np.ndarray | None = None) -> list[np.ndarray]:
        """(slices, rows, columns) Hounsfield units as stored values.

        A voxel that equals the host's keeps its stored value; others are rounded, and cut off where Bits Stored end. A
        slice without a changed voxel is the host's own array.

        Args:
            hu: of the whole series.
            parity: of the same shape; 0 where the stored value is to be even, 1 where odd, another number elsewhere.
        """
        free = np.full(hu.shape[1:], -1, np.int8)
        return [self._stored(index, plane, free if parity is None else parity[index]) for index, plane in enumerate(hu)]

    def _stored(self, index: int, hu: np.ndarray, parity: np.ndarray) -> np.ndarray:
        changed = (hu != self.hu[index]) | (parity >= 0)
        if not changed.any():
            return self.stored[index]
        slope, intercept = self._rescale[:, index]
        bits, signed = int(self.slices[index].BitsStored), bool(self.slices[index].PixelRepresentation)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        stored = self.stored[index].copy()
        stored[changed] = rounded((hu[changed] - intercept) / slope, parity[changed], low, high)
        return stored


def read_host(folder: str | Path | None) -> Host:
    """The one CT series below a folder.

    Compressed pixels are decoded by what pydicom finds installed.

    Args:
        folder: with the slices of one axial series, one a file; other objects (reports, localizers) are passed over.

    Raises:
        InputError: if there is none or more than one series, a file is damaged or cannot be decoded, slices are
            missing, doubled, unevenly spaced, of different sizes, in colour, without an identifier of their own or in
            several frames of reference, or the values cannot be Hounsfield units.
    """
    series = read_series(folder)
    slices = [_little_endian(read_file(item.path)) for item in series.slices]
    _check_instances([item.path for item in series.slices], slices)
    geometry = series_geometry(series, slices)
    host = Host(slices, [_pixels(item.path, data) for item, data in zip(series.slices, slices)], geometry)
    if fault := not_hounsfield(host.hu):
        raise InputError(f"series: {folder}: {fault}")
    return host


def read_series(folder: str | Path | None) -> Series:
    """The one CT series below a folder, by its headers.

    Raises:
        InputError: as :func:`read_host` does, except for what only the pixels tell.
    """
    if folder is None:
        raise InputError("series: none is given; give the folder of one CT series")
    if not Path(folder).is_dir():
        raise InputError(f"series: there is no folder {folder}; give the folder of one CT series")
    index = index_series(Path(folder))
    if index.broken:
        path, reason = next(iter(index.broken.items()))
        raise InputError(f"series: {path}: {reason}")
    if len(index.series) != 1:
        found = "no axial CT series" if not index.series else f"{len(index.series)} series ({', '.join(index.series)})"
        raise InputError(f"series: {folder} holds {found}; give the folder of one CT series")
    (series,) = index.series.values()
    if series.duplicates:
        raise InputError(
            f"series: {len(series.duplicates)} slices of {folder} lie where another lies, such as"
            f" {series.duplicates[0].name}; remove them, or give the folder of one reconstruction"
        )
    return series


def _little_endian(dataset: Dataset) -> Dataset:
    """A slice in explicit VR big endian, which has been retired and nothing here writes, as little endian."""
    if dataset.file_meta.TransferSyntaxUID != ExplicitVRBigEndian:
        return dataset
    for element in dataset.iterall():
        if element.VR == "OW" and isinstance(element.value, bytes):  # others are numbers by now
            element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()
    little = Dataset(dataset)
    little.file_meta = dataset.file_meta
    little.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return little


def _check_instances(paths: Sequence[Path], slices: Sequence[Dataset]) -> None:
    """Refuse slices that cannot be told apart, lie in several spaces, or are no grey values."""
    first: dict[str, Path] = {}
    for path, item in zip(paths, slices):
        uid = str(item.get("SOPInstanceUID") or "")
        if not uid:
            raise InputError(f"series: {path}: SOPInstanceUID is missing; get the file anew")
        if uid in first:
            raise InputError(
                f"series: {path} has the SOPInstanceUID of {first[uid].name}, so that who refers to one means both; get"
                " the series anew"
            )
        first[uid] = path
        if (samples := item.get("SamplesPerPixel", 1)) != 1:
            raise InputError(f"series: {path}: SamplesPerPixel is {samples}, as in colour; give a CT in grey values")
    frames = dict.fromkeys(str(item.get("FrameOfReferenceUID") or "none") for item in slices)
    if len(frames) > 1:
        raise InputError(
            f"series: {paths[0].parent}: its slices have {len(frames)} values of FrameOfReferenceUID"
            f" ({', '.join(frames)}), so that nothing says how they lie to each other; give those of one"
        )


def series_geometry(series: Series, slices: Sequence[Dataset]) -> Geometry:
    """Where a series' voxels lie.

    Args:
        series: whose.
        slices: the contents of its files; no pixels are needed.

    Raises:
        InputError: if it has fewer than two slices, one is missing, they are not evenly spaced or differ in size.
    """
    headers, paths = [item.header for item in series.slices], [item.path for item in series.slices]
    first = headers[0]
    for path, header in zip(paths, headers):
        if (header.shape, header.spacing) != (first.shape, first.spacing):
            raise InputError(f"series: {path}: its pixels are not of {paths[0].name}'s number and size; remove it")
    if len(headers) < 2:
        raise InputError(f"series: {paths[0]} is its only slice; a volume is needed")
    gaps = np.diff([header.position for header in headers])
    usual, widest = float(np.median(gaps)), int(gaps.argmax())
    if gaps[widest] > _GAP * usual:
        raise InputError(
            f"series: {paths[widest].parent}: a slice is missing between z = {headers[widest].z:g} and"
            f" {headers[widest + 1].z:g} mm ({gaps[widest]:g} mm apart, others {usual:g}); get the series anew"
        )
    corners = np.array([[float(value) for value in item.ImagePositionPatient] for item in slices])
    step = (corners[-1] - corners[0]) / (len(corners) - 1)
    off = np.linalg.norm(corners - corners[0] - np.arange(len(corners))[:, None] * step, axis=1)
    if off.max() > _OFF_LINE_MM:
        raise InputError(
            f"series: {paths[int(off.argmax())]} lies {off.max():.2g} mm from where even spacing puts it; reconstruct"
            " the series with slices evenly spaced"
        )
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 3] = step, corners[0]
    matrix[:3, 1] = np.multiply(first.orientation[3:], first.spacing[0])  # from row to row, along the columns
    matrix[:3, 2] = np.multiply(first.orientation[:3], first.spacing[1])
    thickness = first.slice_thickness if first.slice_thickness > 0 else usual
    return Geometry(matrix, (len(headers), *first.shape), thickness)


def read_file(path: Path, pixels: bool = True) -> Dataset:
    """A file's content, its pixels not decoded.

    Raises:
        InputError: if it is damaged.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except OSError as error:
        raise InputError(f"series: {path}: cannot be read ({error.strerror or error}); get the file anew") from error
    except (InvalidDicomError, *RAISED_BY_DAMAGE) as error:
        raise InputError(f"series: {path}: broken ({' '.join(str(error).split())}); get the file anew") from error


def _pixels(path: Path, dataset: Dataset) -> np.ndarray:
    try:
        return dataset.pixel_array
    except (RuntimeError, *RAISED_BY_DAMAGE) as error:  # what decoders raise on damage depends on the decoder
        reason = " ".join(str(error).split())
        compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
        remedy = "store them uncompressed" if compressed else "get the file anew"
        raise InputError(f"series: {path}: its pixels cannot be decoded ({reason}); {remedy}") from error


def _padded(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (stored >= ends[0]) & (stored <= ends[1])
