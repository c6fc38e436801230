from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import COMPRESSED, SERIES_UID, STUDY_UID, compress, make_slice, write_slice
from pydicom import config
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
)

from nodule_plugin.data.transforms import read_slice
from nodule_plugin.data.window import hu_to_unit
from nodule_plugin.errors import InputError
from nodule_plugin.lidc import dicom_header as module
from nodule_plugin.lidc.dicom_header import BrokenFile, has_dicom_preamble, read_slice_header
from nodule_plugin.lidc.pydicom_versions import HTJ2K, has_decoder, save_conforming

UNCOMPRESSED = (ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)


def _write(path: Path, syntax: str) -> Path:
    if syntax in COMPRESSED:
        return compress(write_slice(path, -12.5), syntax)
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
        ({"Rows": None}, "Rows is missing"),
        ({"RescaleIntercept": None}, "RescaleIntercept is missing, without which stored values are not Hounsfield"),
        ({"RescaleSlope": None}, "RescaleSlope is missing"),
    ],
)
def test_header_that_lacks_something_is_broken(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    path = write_slice(tmp_path / "1.dcm", 0, **elements)
    with pytest.raises(BrokenFile, match=message):
        read_slice_header(path)


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR", "ImagePositionPatient": None},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "PixelSpacing": None},
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


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
def test_every_stored_value_survives_compression(tmp_path: Path, syntax: str, signed: int, bits: int) -> None:
    dataset = make_slice(0, size=64, PixelRepresentation=signed, BitsStored=bits, HighBit=bits - 1)
    lowest = -(2 ** (bits - 1)) if signed else 0
    stored = np.random.default_rng(bits).integers(lowest, lowest + 2**bits, size=(64, 64))
    stored[0, :2] = lowest, lowest + 2**bits - 1
    dataset.PixelData = stored.astype("<u2").tobytes()
    save_conforming(dataset, tmp_path / "1.dcm")
    path = compress(tmp_path / "1.dcm", syntax)
    assert np.array_equal(read_slice(path, None), np.maximum(stored - 1024, -1024))


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (
            JPEGLosslessSV1,
            r"compressed as JPEG Lossless, .*Selection Value 1.* \(1\.2\.840\.10008\.1\.2\.4\.70\), "
            "for which no decoder is installed; run pip install python-gdcm",
        ),
        (HTJ2K[0], "compressed as High-Throughput JPEG 2000 .* run pip install pylibjpeg pylibjpeg-openjpeg"),
        (MPEG2MPML, "compressed as MPEG2 .* store the series uncompressed"),
        ("1.2.840.10008.1.2.4.110", r"compressed as 1\.2.* store the series uncompressed"),  # JPEG XL, of 2024
    ],
)
def test_what_cannot_be_decoded_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, message: str
) -> None:
    decoders = pytest.importorskip("pydicom.pixels.decoders.base", reason="pydicom 2.4 looks for decoders elsewhere")
    path = compress(write_slice(tmp_path / "1.dcm", 0), JPEGLosslessSV1)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dcmwrite(path, dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    monkeypatch.setattr(decoders.Decoder, "is_available", False)
    module._missing_decoder.cache_clear()
    try:
        with pytest.raises(BrokenFile, match=message):
            read_slice_header(path)
        with pytest.raises(InputError, match=rf"image: {path}: {message}"):
            read_slice(path, None)
    finally:
        module._missing_decoder.cache_clear()


def test_decoders_of_what_is_not_known_or_not_an_image() -> None:
    assert has_decoder(JPEGLosslessSV1)
    with pytest.raises(NotImplementedError):
        has_decoder(MPEG2MPML)


def test_a_tilted_slice_knows_its_place_along_the_normal(tmp_path: Path) -> None:
    tilt = np.deg2rad(10)
    orientation = [1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]
    path = write_slice(
        tmp_path / "1.dcm", 30.0, ImagePositionPatient=[-10, -20, 30], ImageOrientationPatient=orientation
    )
    header = read_slice_header(path)
    assert header is not None
    assert header.z == 30
    assert header.position == pytest.approx(30 * np.cos(tilt) - 20 * np.sin(tilt))


@pytest.mark.parametrize("rows", [[1, 0, 0], [-1, 0, 0]])
@pytest.mark.parametrize("columns", [[0, 1, 0], [0, -1, 0]])
def test_without_tilt_the_place_is_z_whichever_way_rows_and_columns_run(
    tmp_path: Path, rows: list[int], columns: list[int]
) -> None:
    header = read_slice_header(write_slice(tmp_path / "1.dcm", -12.5, ImageOrientationPatient=[*rows, *columns]))
    assert header is not None
    assert header.position == header.z == -12.5


def test_values_outside_the_field_of_view_are_air_and_metal_stays(tmp_path: Path) -> None:
    dataset = make_slice(0, size=2)
    dataset.PixelData = np.array([[-2000, -1024], [0, 6916]], "<i2").tobytes()  # HU -3024, -2048, -1024, 5892
    save_conforming(dataset, tmp_path / "1.dcm")
    hu = read_slice(tmp_path / "1.dcm", None)
    assert hu.tolist() == [[-1024, -1024], [-1024, 5892]]
    assert hu_to_unit(hu).tolist() == [[-1, -1], [-1, 1]]


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path) -> None:
    plain = write_slice(tmp_path / "1.dcm", 40)
    scaled = write_slice(tmp_path / "2.dcm", 40, RescaleSlope=2, RescaleIntercept=-2000)
    assert (read_slice(plain, None) == 40).all()
    assert (read_slice(scaled, None) == 40).all()


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "ImagePositionPatient": None},
            "enhanced CT, all slices in one",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2"}, "enhanced CT, all slices in one file"),
        ({"NumberOfFrames": 40}, "40 slices in one file; convert it to one file a slice"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels, which no slice of CT has"),
        ({"Rows": 32}, "512 bytes of pixel data for 32 x 16 pixels of 1024 bytes"),
    ],
)
def test_what_is_ct_and_no_slice_is_named(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    with pytest.raises(BrokenFile, match=message):
        read_slice_header(write_slice(tmp_path / "1.dcm", 0, **elements))


@pytest.mark.parametrize(
    ("tag", "value"), [("RescaleSlope", "0"), ("RescaleSlope", "nan"), ("RescaleIntercept", "inf")]
)
def test_what_makes_no_hounsfield_units_is_named(tmp_path: Path, tag: str, value: str) -> None:
    path = write_slice(tmp_path / "1.dcm", 0)
    with config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        dataset[tag].value = value
        dataset.save_as(path)
    with pytest.raises(BrokenFile, match=rf"{tag} is \S+, which makes no Hounsfield units"):
        read_slice_header(path)


def _inflating_to(path: Path, size: int) -> Path:
    """A deflated CT slice with a private element of so many zeros."""
    dataset = make_slice(0, syntax=DeflatedExplicitVRLittleEndian)
    dataset.add_new(0x00091010, "OB", bytes(size))
    dataset.add_new(0x00090010, "LO", "TEST")
    save_conforming(dataset, path)
    return path


@pytest.mark.parametrize("excess", [-(2**20), 2**20])
def test_deflated_files_are_inflated_as_far_as_a_slice_can_be_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, excess: int
) -> None:
    monkeypatch.setattr(module, "LARGEST_SLICE", 2**22)
    path = _inflating_to(tmp_path / "1.dcm", 2**22 + excess)
    assert path.stat().st_size < 2**14
    if excess < 0:
        assert read_slice_header(path) is not None
        assert (read_slice(path, None) == 0).all()
        return
    with pytest.raises(BrokenFile, match="inflates to more than 4,194,304 bytes, no slice of CT"):
        read_slice_header(path)
    with pytest.raises(InputError, match=rf"image: {path}: inflates to more than"):
        read_slice(path, None)


def test_a_deflated_bomb_takes_no_memory(tmp_path: Path) -> None:
    """What is inflated is thrown away piece by piece: at no time are there more than two megabytes of it."""
    path = _inflating_to(tmp_path / "1.dcm", 2**27)
    tracemalloc.start()
    with pytest.raises(BrokenFile, match="inflates to more than"):
        read_slice_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_sequences_nested_without_end_are_named(tmp_path: Path, syntax: str) -> None:
    path = write_slice(tmp_path / "1.dcm", 0, syntax=syntax)
    content = path.read_bytes()
    sequence = b"\x08\x00\x40\x11" + (b"SQ\0\0" if syntax == ExplicitVRLittleEndian else b"") + b"\xff" * 4
    at = content.index(b"\x08\x00\x60\x00")  # before Modality
    path.write_bytes(content[:at] + (sequence + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 5_000 + content[at:])
    with pytest.raises(BrokenFile, match=r"broken DICOM file \(RecursionError"):
        read_slice_header(path)
    with pytest.raises(InputError, match=rf"image: {path} cannot be read as a DICOM image: .*recursion"):
        read_slice(path, None)
