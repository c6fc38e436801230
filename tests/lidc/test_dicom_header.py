from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from nodule_plugin.data.transforms import read_slice
from nodule_plugin.lidc.dicom_header import BrokenFile, has_dicom_preamble, read_slice_header
from tests.lidc.dicom_files import SERIES_UID, STUDY_UID, make_slice, write_slice

UNCOMPRESSED = (ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (RLELossless, JPEGLSLossless)


def _write(path: Path, syntax: str) -> Path:
    if syntax in COMPRESSED:
        dataset = make_slice(-12.5)
        dataset.compress(syntax)
        dataset.save_as(path, enforce_file_format=True)
        return path
    return write_slice(path, -12.5, syntax=syntax)


def test_header(tmp_path: Path) -> None:
    header = read_slice_header(write_slice(tmp_path / "1.dcm", -12.5, PixelSpacing=[0.5, 0.75], InstanceNumber=7))
    assert header is not None
    assert (header.patient_id, header.study_instance_uid, header.series_instance_uid) == (
        "TEST-0001",
        STUDY_UID,
        SERIES_UID,
    )
    assert (header.z, header.instance_number, header.slice_thickness) == (-12.5, 7, 2.5)
    assert (header.spacing, header.shape, header.synthetic) == ((0.5, 0.75), (16, 16), False)


def test_synthetic_data_is_known_as_such(tmp_path: Path) -> None:
    header = read_slice_header(write_slice(tmp_path / "1.dcm", 0, SyntheticData="YES"))
    assert header is not None
    assert header.synthetic


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, *COMPRESSED])
def test_transfer_syntaxes_are_read_and_decoded(tmp_path: Path, syntax: str) -> None:
    path = _write(tmp_path / "1.dcm", syntax)
    header = read_slice_header(path)
    assert header is not None
    assert header.z == -12.5
    assert (read_slice(path, None) == -12).all()


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, *COMPRESSED])
@pytest.mark.parametrize("keep", [0.4, 0.9])
def test_truncated_file_is_broken(tmp_path: Path, syntax: str, keep: float) -> None:
    path = _write(tmp_path / "1.dcm", syntax)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(BrokenFile, match=r"truncated|broken DICOM file"):
        read_slice_header(path)


def test_one_byte_short_is_broken(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "1.dcm", 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BrokenFile, match="truncated: 511 of 512 bytes of pixel data"):
        read_slice_header(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_no_truncation_and_no_flipped_byte_goes_unhandled(tmp_path: Path, syntax: str) -> None:
    path = write_slice(tmp_path / "1.dcm", 0, size=2, syntax=syntax)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    messages: list[str] = []
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(BrokenFile):
            read_slice_header(path)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read_slice_header(path)
        except BrokenFile as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty file"), (b"\x89PNG" * 100, "not a DICOM file, whatever its name says")]
)
def test_named_dicom_but_is_not(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "1.DCM"
    path.write_bytes(content)
    assert not has_dicom_preamble(path)
    with pytest.raises(BrokenFile, match=message):
        read_slice_header(path)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"ImagePositionPatient": []}, "ImagePositionPatient is missing"),
        ({"PixelSpacing": [0.5, 0]}, "PixelSpacing is 0.5, 0; both must be above 0"),
        ({"PixelSpacing": 0.5}, "PixelSpacing is missing or does not have 2 values"),
        ({"SeriesInstanceUID": None}, "SeriesInstanceUID is missing"),
    ],
)
def test_header_that_lacks_something_is_broken(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    path = write_slice(tmp_path / "1.dcm", 0, **elements)
    with pytest.raises(BrokenFile, match=message):
        read_slice_header(path)


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None},
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    ],
)
def test_what_is_no_axial_ct_slice_is_passed_over(tmp_path: Path, elements: dict[str, Any]) -> None:
    assert read_slice_header(write_slice(tmp_path / "1.dcm", 0, **elements)) is None


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "LICENSE"
    path.write_text("words")
    assert read_slice_header(path) is None


def test_unstated_thickness_and_number(tmp_path: Path) -> None:
    header = read_slice_header(write_slice(tmp_path / "1.dcm", 0, SliceThickness=None, InstanceNumber=None))
    assert header is not None
    assert header.slice_thickness != header.slice_thickness
    assert header.instance_number == 0


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path) -> None:
    plain = write_slice(tmp_path / "1.dcm", 40)
    scaled = write_slice(tmp_path / "2.dcm", 40, RescaleSlope=2, RescaleIntercept=-2000)
    assert (read_slice(plain, None) == 40).all()
    assert (read_slice(scaled, None) == 40).all()
