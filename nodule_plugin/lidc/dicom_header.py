"""What is needed of a CT slice's DICOM header, and whether the file is whole. No pixels are decoded."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from nodule_plugin.lidc.pydicom_versions import HTJ2K, has_decoder

DICOM_SUFFIXES = (".dcm", ".dicom")
"""A file so named that is not DICOM is damaged; others are passed over."""
_TAGS = (
    "SyntheticData",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SliceThickness",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "RescaleSlope",
    "RescaleIntercept",
)
_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT Image Storage and Legacy Converted Enhanced CT Image Storage: all slices in one file."""
_SINGLE_FRAMES = "convert it to one file a slice, with dcm4che's emf2sf for instance"
LARGEST_SLICE = 2**26
"""Bytes of the largest file of one slice, inflated; 2,048 x 2,048 pixels of 16 bits have an eighth of them."""
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_AXIAL = 0.9
"""Least cosine between the slice normal and the patient's long axis: localizers and reformats are not axial."""

RAISED_BY_DAMAGE = (
    BytesLengthException,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on damaged files; which of these depends on where the damage is."""


class BrokenFile(Exception):
    """A file that should have been a CT slice and cannot be used as one; the message says why, and what would help."""

    def __init__(self, reason: str, remedy: str = "get the file anew") -> None:
        super().__init__(f"{reason}; {remedy}")


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """One axial CT slice.

    Attributes:
        patient_id, study_instance_uid, series_instance_uid: DICOM identifiers.
        slice_thickness: mm; NaN where the header does not say.
        instance_number: 0 where the header does not say.
        z: last coordinate of ImagePositionPatient, mm, which is what the readers' contours refer to.
        position: of the slice along its normal, mm: ImagePositionPatient projected on it (PS3.3 C.7.6.2.1.1). The same
            as ``z`` unless the slice is tilted.
        orientation: direction cosines of rows and columns (ImageOrientationPatient).
        spacing: (row, column) distance between pixels, mm.
        shape: (rows, columns).
        synthetic: whether the header declares the pixels synthetic (Synthetic Data, PS3.3 C.12.1).
    """

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    slice_thickness: float
    instance_number: int
    z: float
    position: float
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    synthetic: bool = False


def read_slice_header(path: Path) -> SliceHeader | None:
    """Read one file's header.

    Returns:
        None where the file is not DICOM or is not an axial CT image (radiographs, reports, localizers).

    Raises:
        BrokenFile: if the file is damaged or incomplete, or a CT image whose header lacks what a slice needs.
    """
    try:
        with path.open("rb") as file:
            if not _is_dicom(file, path):
                return None
            check_inflated_size(path)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
            if path.stat().st_size < _meta_length(dataset.file_meta):
                raise BrokenFile("truncated: the file ends before its header")
            # The class is taken from the file's head, which is whole where the header is cut short.
            sop_class = dataset.file_meta.get("MediaStorageSOPClassUID", _CT_IMAGE_STORAGE)
            if sop_class not in (_CT_IMAGE_STORAGE, *_ENHANCED_CT):
                return None
            if sop_class in _ENHANCED_CT:
                raise BrokenFile("enhanced CT, all slices in one file", _SINGLE_FRAMES)
            check_size(dataset)
            check_decoder(dataset.file_meta.TransferSyntaxUID)
            _check_pixel_data(file, dataset)
        return _slice_header(dataset)
    except OSError as error:
        raise BrokenFile(f"cannot be read ({error.strerror or error})") from error
    except InvalidDicomError as error:
        raise BrokenFile("not a DICOM file, whatever its name says") from error
    except RAISED_BY_DAMAGE as error:
        reason = " ".join(str(error).split())
        raise BrokenFile(f"broken DICOM file ({type(error).__name__}: {reason})") from error


def check_decoder(syntax: UID) -> None:
    """Whether pixels of a transfer syntax can be decoded here.

    Raises:
        BrokenFile: if they cannot, with the transfer syntax and what to install.
    """
    missing = _missing_decoder(syntax)
    if missing is not None:
        raise BrokenFile(f"compressed as {syntax.name} ({syntax}), for which no decoder is installed", missing)


def check_size(dataset: Dataset) -> None:
    """Whether the pixels that a header announces are one slice, of a size that slices have; compressed ones may be few.

    Raises:
        BrokenFile: if not.
    """
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise BrokenFile(f"{dataset.NumberOfFrames} slices in one file", _SINGLE_FRAMES)
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if 2 * rows * columns > LARGEST_SLICE:
        raise BrokenFile(f"{rows} x {columns} pixels, which no slice of CT has")


def check_rescale(dataset: Dataset) -> None:
    """Whether a header says how stored values become Hounsfield units.

    Raises:
        BrokenFile: if not.
    """
    for tag in ("RescaleSlope", "RescaleIntercept"):
        if dataset.get(tag) is None:
            raise BrokenFile(f"{tag} is missing, without which stored values are not Hounsfield units")
        if not np.isfinite(float(dataset[tag].value)) or (tag == "RescaleSlope" and dataset.RescaleSlope == 0):
            raise BrokenFile(f"{tag} is {dataset[tag].value}, which makes no Hounsfield units")


@lru_cache
def _missing_decoder(syntax: UID) -> str | None:
    """What to do about a transfer syntax that cannot be decoded; None where it can."""
    try:
        if not syntax.is_compressed or has_decoder(syntax):
            return None
    except (NotImplementedError, ValueError):  # known to pydicom, but not how to decode it; or not known at all
        return "store the series uncompressed"
    # GDCM decodes all but high-throughput JPEG 2000.
    return f"run pip install {'pylibjpeg pylibjpeg-openjpeg' if syntax in HTJ2K else 'python-gdcm'}"


def check_inflated_size(path: Path) -> None:
    """Whether a file of the deflated transfer syntax is whole, and no larger inflated than a slice can be.

    Anything else passes. pydicom inflates such a file in one piece, whatever becomes of it.

    Raises:
        BrokenFile: if it is cut, or inflates to more than :data:`LARGEST_SLICE`.
    """
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    # All that follows the file meta information is one deflate stream (PS3.5 A.5), which knows its own end.
    with path.open("rb") as file:
        file.seek(_meta_length(meta))
        stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not stream.eof:
            size += len(stream.decompress(stream.unconsumed_tail or file.read(2**16), 2**20))
            if size > LARGEST_SLICE:
                raise BrokenFile(f"inflates to more than {LARGEST_SLICE:,} bytes, no slice of CT")
            if not stream.eof and not stream.unconsumed_tail and file.tell() == os.fstat(file.fileno()).st_size:
                raise BrokenFile("truncated: the compressed data does not end")


def has_dicom_preamble(path: Path) -> bool:
    """Whether a file begins as a DICOM file does; False where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _is_dicom(file: BinaryIO, path: Path) -> bool:
    preamble = file.read(132)
    file.seek(0)
    if preamble[128:] == b"DICM":
        return True
    if path.suffix.lower() in DICOM_SUFFIXES:
        raise BrokenFile("empty file" if not preamble else "not a DICOM file, whatever its name says")
    return False


def _meta_length(meta: Dataset) -> int:
    # Preamble, "DICM", the group length's own element, and the file meta information that it counts (PS3.10 7.1).
    return 128 + 4 + 12 + int(meta.FileMetaInformationGroupLength)


def _check_pixel_data(file: BinaryIO, dataset: FileDataset) -> None:
    """Whether the pixel data that begins where the header ends is all there, by its own account of its length."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        return  # checked when it was inflated
    order = "<" if syntax.is_little_endian else ">"
    start = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(start)
    element = file.read(8)
    if len(element) < 8 or struct.unpack(f"{order}HH", element[:4]) != (0x7FE0, 0x0010):
        raise BrokenFile("truncated: the file ends before its pixel data")
    if syntax.is_implicit_VR:
        length = struct.unpack(f"{order}L", element[4:])[0]
    else:
        extended = file.read(4)
        length = struct.unpack(f"{order}L", extended)[0] if len(extended) == 4 else size
    if length == _UNDEFINED_LENGTH:
        _check_fragments(file, size)
    elif file.tell() + length > size:
        raise BrokenFile(f"truncated: {size - file.tell()} of {length} bytes of pixel data")
    elif not syntax.is_compressed and length < (needed := _pixel_bytes(dataset)):
        raise BrokenFile(
            f"{length} bytes of pixel data for {dataset.Rows} x {dataset.Columns} pixels of {needed} bytes"
        )


def _pixel_bytes(dataset: FileDataset) -> int:
    return (
        int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * int(dataset.get("BitsAllocated") or 0) // 8
    )


def _check_fragments(file: BinaryIO, size: int) -> None:
    # Encapsulated pixel data (PS3.5 A.4): items up to a sequence delimiter, always little endian.
    while len(item := file.read(8)) == 8:
        if item[:4] == _SEQUENCE_END:
            return
        length = struct.unpack("<L", item[4:])[0]
        if item[:4] != _ITEM or file.tell() + length > size:
            break
        file.seek(length, os.SEEK_CUR)
    raise BrokenFile("truncated: the compressed pixel data does not end")


def _slice_header(dataset: FileDataset) -> SliceHeader | None:
    position = _numbers(dataset, "ImagePositionPatient", 3)
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    if abs(normal[2]) < _AXIAL:
        return None
    spacing = _numbers(dataset, "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise BrokenFile(f"PixelSpacing is {spacing[0]:g}, {spacing[1]:g}; both must be above 0")
    for tag in ("SeriesInstanceUID", "Rows", "Columns"):
        if not dataset.get(tag):
            raise BrokenFile(f"{tag} is missing")
    check_rescale(dataset)
    thickness = dataset.get("SliceThickness")
    return SliceHeader(
        patient_id=str(dataset.get("PatientID", "")),
        study_instance_uid=str(dataset.get("StudyInstanceUID", "")),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        slice_thickness=float("nan") if thickness is None else float(thickness),
        instance_number=int(dataset.get("InstanceNumber") or 0),
        z=position[2],
        # Upwards whichever way rows and columns run, so that positions rise with z.
        position=float(np.dot(position, normal * np.sign(normal[2]))),
        orientation=tuple(orientation),
        spacing=(spacing[0], spacing[1]),
        shape=(int(dataset.Rows), int(dataset.Columns)),
        synthetic=dataset.get("SyntheticData") == "YES",
    )


def _numbers(dataset: FileDataset, tag: str, count: int) -> list[float]:
    values = dataset.get(tag)
    if values is None or not hasattr(values, "__len__") or len(values) != count:
        raise BrokenFile(f"{tag} is missing or does not have {count} values")
    numbers = [float(value) for value in values]
    if not np.isfinite(numbers).all():
        raise BrokenFile(f"{tag} has a value that is not finite")
    return numbers
