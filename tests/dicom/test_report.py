from __future__ import annotations

import io
from typing import Any

import pytest
from dicom_encoding import PROMPT, RUN, Encoded, encode
from highdicom.sr import srread
from pydicom.sr.codedict import codes

from nodule_plugin.dicom.codes import CODING_SCHEMES, CONCEPTS, VALUES
from nodule_plugin.findings import SCALES


def group(encoded: Encoded) -> Any:
    """The report's only measurement group, as a reader of TID 1500 finds it."""
    report = srread(io.BytesIO(encoded.files[1]))
    (found,) = report.content.get_image_measurement_groups()
    return found


def evaluations(encoded: Encoded) -> list[Any]:
    """The group's qualitative evaluations, among which highdicom counts the kind of finding."""
    found = group(encoded).get_qualitative_evaluations()
    return [item for item in found if item.name.meaning not in ("Finding", "Finding category")]


def test_it_is_about_a_nodule_of_the_lung(encoded: Encoded) -> None:
    found = group(encoded)
    assert found.finding_type == codes.SCT.Nodule
    assert [site.value for site in found.finding_sites] == [codes.SCT.Lung]


def test_it_says_what_was_asked_for(encoded: Encoded) -> None:
    found = {item.name.meaning: item.value.meaning for item in evaluations(encoded)}
    assert found == {
        "Sphericity": "round",
        "Margin": "3 out of 5",
        "Texture": "solid pulmonary nodule",
        "Spiculation": "1 out of 5 (No spiculation)",
        "Calcification": "Absent",
        "Malignancy": "2 out of 5 (Moderately Unlikely for Cancer)",
    }


def texts(encoded: Encoded) -> dict[str, list[str]]:
    """Meaning of the concept -> texts, of the items of the measurement group."""
    found: dict[str, list[str]] = {}
    for item in group(encoded)[0].ContentSequence:
        if item.ValueType == "TEXT":
            found.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(item.TextValue)
    return found


def test_it_holds_the_prompt_and_says_that_nobody_has_read_the_image(encoded: Encoded) -> None:
    found = texts(encoded)
    assert found["Text prompt of generative model"] == [PROMPT]
    (comment,) = found["Comment"]
    assert "Nobody has read this image" in comment
    assert "not for diagnosis" in comment
    assert encoded.report.VerificationFlag == "UNVERIFIED"


def test_it_names_the_generator(encoded: Encoded) -> None:
    found = texts(encoded)
    assert found["Algorithm Name"] == [RUN["model"]["base_model"]]
    assert f"weights_sha256={RUN['model']['weights_sha256']}" in found["Algorithm Parameters"]
    assert {"seed=7", "guidance_scale=5.0", "num_inference_steps=25"} <= set(found["Algorithm Parameters"])


def test_it_refers_to_its_image(encoded: Encoded) -> None:
    image, report = encoded.image, encoded.report
    (source,) = group(encoded).source_images
    assert source.referenced_sop_instance_uid == image.SOPInstanceUID
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyTime", "StudyDescription"):
        assert report[keyword].value == image[keyword].value, keyword
    assert report.SeriesInstanceUID != image.SeriesInstanceUID


def test_it_is_marked_like_the_image(encoded: Encoded) -> None:
    report = encoded.report
    assert (report.SyntheticData, report.ContentQualification) == ("YES", "RESEARCH")
    (equipment,) = report.ContributingEquipmentSequence
    assert equipment.DeviceSerialNumber == RUN["model"]["weights_sha256"]


def test_a_prompt_without_findings_makes_a_report_without_evaluations() -> None:
    encoded = encode(findings=None)
    assert evaluations(encoded) == []
    assert texts(encoded)["Text prompt of generative model"] == [PROMPT]


def test_every_rating_of_every_scale_has_a_code_of_its_own() -> None:
    assert set(CONCEPTS) == set(VALUES) == set(SCALES)
    for name, scale in SCALES.items():
        assert tuple(VALUES[name]) == scale.codes
        assert len({(code.value, code.scheme_designator) for code in VALUES[name].values()}) == len(scale.codes)


@pytest.mark.parametrize("name", list(SCALES))
def test_a_code_means_what_its_rating_says(name: str) -> None:
    terms = {"poorly defined": "indistinct margin", "sharp": "circumscribed margin", "fat": "adipose tissue"}
    for rating, label in SCALES[name].labels.items():
        meaning = VALUES[name][rating].meaning.lower()
        expected = f"{rating} out of 5" if "out of" in meaning else terms.get(label, label.split(" (")[0])
        assert meaning.startswith(expected)


def test_private_schemes_are_identified_in_the_file(encoded: Encoded) -> None:
    used = {code.scheme_designator for values in VALUES.values() for code in values.values()}
    named = {item.CodingSchemeDesignator for item in encoded.report.CodingSchemeIdentificationSequence}
    assert {scheme for scheme in used if scheme.startswith("99")} <= named
    assert named == {item.CodingSchemeDesignator for item in CODING_SCHEMES}


@pytest.mark.parametrize("rating", range(1, 7))
def test_every_rating_can_be_read_back(rating: int) -> None:
    findings = {name: rating for name, scale in SCALES.items() if rating in scale.codes}
    found = [(item.name, item.value) for item in evaluations(encode(findings=findings))]
    assert found == [(CONCEPTS[name], VALUES[name][rating]) for name in findings]


def test_reports_of_a_run_are_one_series() -> None:
    first, second = encode().report, encode(number=2, id="other").report
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    assert first.SOPInstanceUID != second.SOPInstanceUID
