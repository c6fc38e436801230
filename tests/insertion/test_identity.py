"""Whose the written series is, and that it says what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pydicom
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.derived import Belonging

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


def test_a_study_has_one_patient() -> None:
    with pytest.raises(InputError, match="study: host"):
        Belonging("replace", "host")
    with pytest.raises(InputError, match="patient: replace or keep, not 'drop'"):
        Belonging("drop")
