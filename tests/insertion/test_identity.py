"""Whose the written series is, and that it says what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pydicom
import pytest
from ct_hosts import SLICES, write_host

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.derived import PATIENTS, Belonging
from nodule_plugin.insertion.lesions import read_lesions

TELLING = re.compile(rb"Doe|Jane|TEST-0001|19500101|20200102|Physician|Hospital|2\.25\.100\d{0,9}(?!\d)")
"""What of the host's files would tell whose they are. Its UIDs are short; a derived one may begin like one."""


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.dcm"))


def first(folder: Path) -> pydicom.Dataset:
    return pydicom.dcmread(files(folder / "seed0" / "ct")[0])


def test_nothing_of_the_patient_is_left(inserted: Path) -> None:
    assert len(files(inserted)) > 20
    assert [
        (path.name, TELLING.findall(path.read_bytes())) for path in files(inserted) if TELLING.search(path.read_bytes())
    ] == []
    image = first(inserted)
    assert str(image.PatientID).startswith("SYNTHETIC-")
    assert image.PatientIdentityRemoved == "YES"
    assert "SourceImageSequence" not in image


def test_the_hosts_study_can_be_kept(kept: Path, host: Path) -> None:
    image, source = first(kept), {item.SOPInstanceUID: item for item in map(pydicom.dcmread, files(host))}
    (reference,) = image.SourceImageSequence
    original = source[reference.ReferencedSOPInstanceUID]
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
        assert image[keyword].value == original[keyword].value, keyword
    assert image.SeriesInstanceUID != original.SeriesInstanceUID
    assert image.SeriesNumber == 301
    assert image.ImagePositionPatient == original.ImagePositionPatient


def test_a_new_study_of_the_patient_has_no_order(host: Path, insert: Any, tmp_path: Path) -> None:
    image = first(insert(host, tmp_path / "out", belonging=Belonging("keep", "new")))
    assert image.PatientID == "TEST-0001"
    assert image.StudyInstanceUID != "2.25.1000"
    assert image.AccessionNumber == ""
    assert image.StudyDescription.startswith("SYNTHETIC")


@pytest.mark.parametrize("which", ["inserted", "kept"])
def test_every_file_is_marked(which: str, request: pytest.FixtureRequest) -> None:
    datasets = [pydicom.dcmread(path) for path in files(request.getfixturevalue(which))]
    assert {item.Modality for item in datasets} == {"CT", "SEG", "SR"}
    for item in datasets:
        assert item.SyntheticData == "YES"
        assert item.SeriesDescription.startswith("SYNTHETIC")
        assert item.ContributingEquipmentSequence[-1].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
        if item.Modality == "CT":
            assert item.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
            assert item.DerivationCodeSequence[0].CodeMeaning == "Pixel by pixel addition"
            assert "not for diagnosis" in item.ImageComments
    assert len({(item.StudyInstanceUID, item.PatientID) for item in datasets}) == 1


@pytest.mark.parametrize("patient", PATIENTS)
def test_series_and_content_begin_when_they_are_made(patient: str, insert: Any, tmp_path: Path) -> None:
    """In the study's own time zone, which all files of it then name."""
    acquired = {f"{name}Date": "20200102" for name in ("Acquisition", "Series", "Content")}
    acquired |= {f"{name}Time": "090000" for name in ("Acquisition", "Series", "Content")}
    write_host(tmp_path / "host", TimezoneOffsetFromUTC="+0900", **acquired)
    made = {"belonging": Belonging(patient), "created": "2026-01-31T20:00:00"}
    offset, day, hour = ("+0900", "20260201", "050000") if patient == "keep" else ("+0000", "20260131", "200000")
    for item in map(pydicom.dcmread, files(insert(tmp_path / "host", tmp_path / "out", **made))):
        assert item.TimezoneOffsetFromUTC == offset
        for name in ("InstanceCreation", "Series", "Content"):
            assert (item[f"{name}Date"].value, item[f"{name}Time"].value) == (day, hour), (item.Modality, name)
        assert patient == "replace" or item.get("AcquisitionDate", "20200102") == "20200102"


@pytest.mark.parametrize(
    ("characters", "name"),
    [("ISO_IR 100", "Müller^Jörg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう")],
)
def test_kept_names_and_prompts_keep_their_characters(
    characters: str | list[str], name: str, insert: Any, tmp_path: Path
) -> None:
    write_host(tmp_path / "host", SpecificCharacterSet=characters, PatientName=name)
    lesions = read_lesions(position=(30, 12, 2), diameter_mm=10, prompt="größe 结节")
    out = insert(tmp_path / "host", tmp_path / "out", lesions=lesions, belonging=Belonging("keep", "new"))
    for item in map(pydicom.dcmread, files(out)):
        assert str(item.PatientName) == name
        assert item.SpecificCharacterSet == "ISO_IR 192"
    assert str(first(out).ImageComments).endswith("größe 结节")


def test_a_kept_host_may_lack_attributes(insert: Any, tmp_path: Path) -> None:
    missing = dict.fromkeys(("StudyInstanceUID", "SliceThickness", "FrameOfReferenceUID"))
    for path in write_host(tmp_path / "host", **missing):
        dataset = pydicom.dcmread(path)
        del dataset.SOPClassUID  # the file meta information names it all the same
        dataset.save_as(path)
    with pytest.raises(InputError, match="study: host: the series has no StudyInstanceUID; give study new"):
        insert(tmp_path / "host", tmp_path / "out", belonging=Belonging("keep", "host"))
    assert [path.name for path in tmp_path.iterdir()] == ["host"]
    datasets = [*map(pydicom.dcmread, files(insert(tmp_path / "host", tmp_path / "out", belonging=Belonging("keep"))))]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({item[keyword].value for item in datasets if keyword in item}) == 1, keyword
    assert all(item.SOPClassUID == item.file_meta.MediaStorageSOPClassUID for item in datasets)


@pytest.mark.parametrize("patient", PATIENTS)
@pytest.mark.parametrize("given", [None, 7])
def test_slices_without_numbers_of_their_own_are_numbered(
    given: int | None, patient: str, insert: Any, tmp_path: Path
) -> None:
    write_host(tmp_path / "host", InstanceNumber=given)
    out = insert(tmp_path / "host", tmp_path / "out", belonging=Belonging(patient))
    assert [pydicom.dcmread(path).InstanceNumber for path in files(out / "seed0" / "ct")] == [*range(1, SLICES + 1)]


def test_a_synthetic_host_is_named(host: Path, inserted: Path, insert: Any, tmp_path: Path, caplog: Any) -> None:
    assert json.loads((inserted / "manifest.json").read_text())["host"]["synthetic"] is False
    assert caplog.text == ""
    out = insert(inserted / "seed0" / "ct", tmp_path / "out")
    assert json.loads((out / "manifest.json").read_text())["host"]["synthetic"] is True
    assert "says that it is synthetic itself" in caplog.text


def test_a_study_has_one_patient() -> None:
    with pytest.raises(InputError, match="study: host"):
        Belonging("replace", "host")
    with pytest.raises(InputError, match="patient: replace or keep, not 'drop'"):
        Belonging("drop")
