from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.xml import is_read_message, read_message, with_geometry
from tests.lidc.dicom_files import SERIES_UID, SQUARE, STUDY_UID, nodule_xml, write_message

SMALL = (
    "<unblindedReadNodule><noduleID>small</noduleID>{}<roi><imageZposition>0</imageZposition>"
    "<inclusion>TRUE</inclusion><edgeMap><xCoord>1</xCoord><yCoord>1</yCoord></edgeMap></roi></unblindedReadNodule>"
)
NON_NODULE = "<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>0</imageZposition></nonNodule>"


@pytest.mark.parametrize("patient", ["LIDC-IDRI-0001", "LIDC-IDRI-0003"])
def test_xml_and_database_agree_contour_by_contour(real_data: Path, patient: str) -> None:
    [path] = (real_data / "lidc_idri" / patient).rglob("*.xml")
    read = read_message(path)
    [known] = load_scans(patient_ids=[patient])
    assert (read.series_instance_uid, read.study_instance_uid) == (known.series_instance_uid, known.study_instance_uid)
    assert len(read.annotations) == len(known.annotations) > 0
    for ours, theirs in zip(read.annotations, known.annotations):
        assert ours.nodule_id == theirs.nodule_id
        assert ours.ratings == theirs.ratings
        assert len(ours.contours) == len(theirs.contours)
        for a, b in zip(ours.contours, theirs.contours):
            assert (a.z, a.inclusion) == (b.z, b.inclusion)
            assert np.array_equal(a.points, b.points)


def test_reads_what_is_an_annotation_and_nothing_else(tmp_path: Path) -> None:
    first = SMALL.format("") + nodule_xml([(2.5, SQUARE), (5.0, SQUARE)], texture=2) + NON_NODULE
    second = SMALL.format("<characteristics/>") + nodule_xml([(2.5, SQUARE)], inclusion="FALSE")
    scan = read_message(write_message(tmp_path / "1.xml", [first, second]))
    assert (scan.series_instance_uid, scan.study_instance_uid) == (SERIES_UID, STUDY_UID)
    assert [annotation.id for annotation in scan.annotations] == ["1.1", "2.1"]
    one, other = scan.annotations
    assert one.ratings["texture"] == 2
    assert one.ratings["internal_structure"] == 1
    assert [(contour.z, contour.inclusion) for contour in one.contours] == [(2.5, True), (5.0, True)]
    assert one.contours[0].points.tolist() == [[y, x] for x, y in SQUARE]
    assert not other.contours[0].inclusion


def test_geometry_comes_from_elsewhere_and_keeps_missing_slices(tmp_path: Path) -> None:
    scan = read_message(write_message(tmp_path / "1.xml", [nodule_xml([(2.5, SQUARE), (5.0, SQUARE)])]))
    assert math.isnan(scan.slice_thickness)
    assert scan.slice_z == ()
    completed = with_geometry(scan, "P", 2.5, 0.7, [7.5, 2.500001, 0.0])
    assert completed.slice_z == (0.0, 2.500001, 5.0, 7.5)
    assert (completed.patient_id, completed.slice_thickness, completed.pixel_spacing) == ("P", 2.5, 0.7)


def test_malformed_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_message(tmp_path / "bad.xml", [nodule_xml([(2.5, SQUARE)])])
    text = path.read_text()
    path.write_text(text[: text.index("</roi>")])
    with pytest.raises(InputError, match=r"bad\.xml: line 4, column \d+: not well-formed XML") as caught:
        read_message(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<LidcReadMessage", "<IdriReadMessage", "not well-formed"),
        ("LidcReadMessage", "IdriReadMessage", "the root element is .*IdriReadMessage"),
        ("<SeriesInstanceUid>", "<SeriesInstanceUid/><X>", "not well-formed"),
        (f"<SeriesInstanceUid>{SERIES_UID}</SeriesInstanceUid>", "", "header: .*SeriesInstanceUid is missing"),
        ("<noduleID>1</noduleID>", "", "nodule 1.1: noduleID is missing"),
        ("<texture>5</texture>", "<texture>solid</texture>", "nodule '1' of reader 1: texture is 'solid'"),
        ("<imageZposition>2.5 ", "<imageZposition>here", "imageZposition is 'here', not a number"),
        ("<inclusion>TRUE", "<inclusion>MAYBE", "inclusion is 'MAYBE'"),
        ("<xCoord>5<", "<xCoord>5.5<", "xCoord is '5.5', not a whole number"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_message(tmp_path / "bad.xml", [nodule_xml([(2.5, SQUARE)])])
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        read_message(path)
    assert "bad.xml" in str(caught.value)


@pytest.mark.parametrize("encoding", ["UJF-8", "UTF-32"])
def test_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    path = write_message(tmp_path / "bad.xml", [])
    path.write_text(path.read_text().replace("UTF-8", encoding))
    with pytest.raises(InputError, match=r"bad\.xml: "):
        read_message(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.xml: cannot be read"):
        read_message(tmp_path / "absent.xml")


def test_entities_do_not_explode(tmp_path: Path) -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 9))
    path = tmp_path / "bomb.xml"
    path.write_text(f'<!DOCTYPE x [<!ENTITY e0 "ha">{levels}]><LidcReadMessage>&e8;</LidcReadMessage>')
    with pytest.raises(InputError, match=r"bomb\.xml"):
        read_message(path)


@pytest.mark.parametrize(("root", "is_one"), [("LidcReadMessage", True), ("IdriReadMessage", False)])
def test_is_read_message(tmp_path: Path, root: str, is_one: bool) -> None:
    path = tmp_path / "1.xml"
    path.write_text(f'<?xml version="1.0"?>\n<{root} xmlns="http://www.nih.gov"/>')
    assert is_read_message(path) is is_one
