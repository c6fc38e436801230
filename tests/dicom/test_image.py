from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from dicom_encoding import CREATED, PROMPT, RUN, Encoded, encode
from monai.transforms import LoadImage

from nodule_plugin.dicom.identity import RunIdentity, long_string, parse_created
from nodule_plugin.errors import InputError

INT16 = np.arange(-(2**15), 2**15).astype(np.int16).reshape(256, 256)


def test_every_value_of_the_window_comes_back_as_it_was(encoded: Encoded) -> None:
    image = encoded.image
    assert (image.RescaleSlope, image.RescaleIntercept, image.RescaleType) == (1, 0, "HU")
    np.testing.assert_array_equal(image.pixel_array, encoded.hu)


def test_every_16_bit_value_comes_back_as_it_was() -> None:
    np.testing.assert_array_equal(encode(INT16).image.pixel_array, INT16)


def test_gdcm_and_monai_read_the_same_hounsfield_units(encoded: Encoded, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(encoded.files[0])
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    columns, rows = reader.GetImage().GetDimensions()[:2]
    buffer = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    np.testing.assert_array_equal(np.frombuffer(buffer, "<i2").reshape(rows, columns), encoded.hu)
    loaded = LoadImage(image_only=True, reader="PydicomReader", dtype=np.int16)(path)
    np.testing.assert_array_equal(loaded.numpy().squeeze().T, encoded.hu)


def test_what_does_not_fit_is_refused() -> None:
    for value in (40000, -40000, np.nan):
        with pytest.raises(InputError, match="findings000_g5_s7: Hounsfield units must fit into 16 bits"):
            encode(np.full((4, 4), value))


def test_it_says_that_it_is_synthetic_wherever_there_is_a_place(encoded: Encoded) -> None:
    image = encoded.image
    assert image.SyntheticData == "YES"
    assert image.ContentQualification == "RESEARCH"
    assert image.ImageType[:2] == ["DERIVED", "SECONDARY"]
    for keyword in ("PatientID", "PatientName", "StudyDescription", "SeriesDescription", "ManufacturerModelName"):
        assert str(image[keyword].value).startswith("SYNTHETIC"), keyword
    for keyword in ("PatientComments", "ImageComments"):
        assert "Synthetic" in image[keyword].value
        assert "not for diagnosis" in image[keyword].value
    assert PROMPT in image.ImageComments


def test_no_id_of_an_item_is_in_a_file() -> None:
    made = encode(id="LIDC-IDRI-0001-N01_g5_s7", source_id="LIDC-IDRI-0001-N01", number=3)
    assert all(b"LIDC-IDRI-0001" not in file for file in made.files)
    assert made.image.SeriesDescription == "SYNTHETIC nodule 3"


@pytest.mark.parametrize("prompt", ["a\x1b[2J", "a\0", "a\x07b", "x" * 11_000])
def test_prompts_that_make_invalid_files_are_refused(prompt: str) -> None:
    with pytest.raises(InputError, match=r"^prompt: "):
        encode(prompt=prompt)
    assert "Prompt: two words" in encode(prompt="two\twords").image.ImageComments


def test_there_is_no_patient_no_scanner_and_no_hospital(encoded: Encoded) -> None:
    image = encoded.image
    for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName", "KVP"):
        assert not image[keyword].value, keyword
    for keyword in ("InstitutionName", "StationName", "OperatorsName", "PatientAge", "AcquisitionDate"):
        assert keyword not in image


def test_geometry_is_that_of_the_nifti_files(encoded: Encoded) -> None:
    image = encoded.image
    assert image.PixelSpacing == [0.3125, 0.3125]
    assert image.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert image.ImagePositionPatient == [0, 0, 0]


def test_it_opens_in_the_window_it_was_generated_in(encoded: Encoded) -> None:
    image = encoded.image
    assert (image.WindowCenter, image.WindowWidth) == (-300, 1400)


def test_contributing_equipment_is_the_model(encoded: Encoded) -> None:
    (item,) = encoded.image.ContributingEquipmentSequence
    assert item.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Synthesizing Equipment"
    assert item.ManufacturerModelName == RUN["model"]["base_model"]
    assert item.DeviceSerialNumber == RUN["model"]["weights_sha256"]
    assert list(item.SoftwareVersions) == ["nodule_plugin 0.1.0", "torch 2.14.1"]
    said = dict(part.split("=") for part in item.ContributionDescription.split("; "))
    assert said == {
        "weights_sha256": RUN["model"]["weights_sha256"],
        "guidance_scale": "5.0",
        "seed": "7",
        "scheduler": "DPMSolverMultistepScheduler",
        "num_inference_steps": "25",
        "window_hu": json.dumps(RUN["window_hu"]),
        "prediction_type": "epsilon",
    }


def test_equal_runs_give_equal_files_and_other_runs_no_common_identifier() -> None:
    first, again = encode(), encode()
    assert first.files == again.files
    later = encode(created="2026-11-25T10:00:01+00:00")
    assert not uids(first.image) & uids(later.image)
    assert not uids(first.report) & uids(later.report)
    assert later.image.PatientID != first.image.PatientID
    np.testing.assert_array_equal(later.image.pixel_array, first.image.pixel_array)


def test_what_a_run_was_made_from_is_in_its_identifiers() -> None:
    when = parse_created(CREATED)
    assert len({RunIdentity(RUN, when, made_from).uid("series") for made_from in ("", "2.25.1", "2.25.2")}) == 3


def test_names_fit_into_a_long_string() -> None:
    """PS3.5, table 6.2-1: 64 characters at most, no backslash, no control character."""
    assert long_string("C:\\models\n" + 80 * "x") == "C:/models " + 54 * "x"


def test_images_of_one_run_share_the_study_and_nothing_else() -> None:
    first, second = encode().image, encode(number=2, id="findings000_g5_s8", seed=8).image
    assert uids(first) & uids(second) == {first.StudyInstanceUID}
    assert first.PatientID == second.PatientID
    assert first.SeriesNumber != second.SeriesNumber


def test_other_pixels_are_another_image(encoded: Encoded) -> None:
    assert encode(encoded.hu + 1).image.SOPInstanceUID != encoded.image.SOPInstanceUID


def test_dates_are_when_it_was_made_in_utc() -> None:
    image = encode(created="2026-11-25T01:30:00+09:00").image
    assert (image.ContentDate, image.ContentTime, image.TimezoneOffsetFromUTC) == ("20261124", "163000", "+0000")
    assert image.StudyDate == image.SeriesDate == image.InstanceCreationDate == "20261124"
    assert encode(created=CREATED).image.ContentTime == "100000.123456"


def test_a_time_without_a_zone_is_utc_wherever_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert parse_created("2026-11-25T10:00:00").isoformat() == "2026-11-25T10:00:00+00:00"
    time.tzset()


def uids(dataset: Any) -> set[str]:
    """All UIDs of a dataset that are its own, and not the standard's."""
    found = {str(element.value) for element in dataset.iterall() if element.VR == "UI"}
    assert all(len(uid) <= 64 for uid in found)
    return {uid for uid in found if uid.startswith("2.25.")}
