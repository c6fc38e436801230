from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from dicom_files import SERIES_UID, SQUARE, STUDY_UID, nodule_xml, write_message

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.readings import choose_readings
from nodule_plugin.lidc.records import Reading
from nodule_plugin.lidc.xml import LARGEST_FILE, is_read_message, read_reading, with_geometry

SMALL = (
    "<unblindedReadNodule><noduleID>small</noduleID>{}<roi><imageZposition>0</imageZposition>"
    "<inclusion>TRUE</inclusion><edgeMap><xCoord>1</xCoord><yCoord>1</yCoord></edgeMap></roi></unblindedReadNodule>"
)
NON_NODULE = "<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>0</imageZposition></nonNodule>"


@pytest.mark.parametrize("patient", ["LIDC-IDRI-0001", "LIDC-IDRI-0003"])
def test_xml_and_database_agree_contour_by_contour(real_data: Path, patient: str) -> None:
    [path] = (real_data / "lidc_idri" / patient).rglob("*.xml")
    read = read_reading(path).scan
    [known] = [scan for scan in load_scans() if scan.patient_id == patient]
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
    scan = read_reading(write_message(tmp_path / "1.xml", [first, second])).scan
    assert (scan.series_instance_uid, scan.study_instance_uid) == (SERIES_UID, STUDY_UID)
    assert [annotation.id for annotation in scan.annotations] == ["1.1", "2.1"]
    one, other = scan.annotations
    assert one.ratings["texture"] == 2
    assert one.ratings["internal_structure"] == 1
    assert [(contour.z, contour.inclusion) for contour in one.contours] == [(2.5, True), (5.0, True)]
    assert one.contours[0].points.tolist() == [[y, x] for x, y in SQUARE]
    assert not other.contours[0].inclusion


def test_geometry_comes_from_elsewhere_and_keeps_missing_slices(tmp_path: Path) -> None:
    scan = read_reading(write_message(tmp_path / "1.xml", [nodule_xml([(2.5, SQUARE), (5.0, SQUARE)])])).scan
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
        read_reading(path)
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
        read_reading(path)
    assert "bad.xml" in str(caught.value)


@pytest.mark.parametrize("encoding", ["UJF-8", "UTF-32"])
def test_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    path = write_message(tmp_path / "bad.xml", [])
    path.write_text(path.read_text().replace("UTF-8", encoding))
    with pytest.raises(InputError, match=r"bad\.xml: "):
        read_reading(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.xml: cannot be read"):
        read_reading(tmp_path / "absent.xml")


def test_entities_do_not_explode(tmp_path: Path) -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 9))
    path = tmp_path / "bomb.xml"
    path.write_text(f'<!DOCTYPE x [<!ENTITY e0 "ha">{levels}]><LidcReadMessage>&e8;</LidcReadMessage>')
    with pytest.raises(InputError, match=r"bomb\.xml"):
        read_reading(path)


@pytest.mark.parametrize(("root", "is_one"), [("LidcReadMessage", True), ("IdriReadMessage", False)])
def test_is_read_message(tmp_path: Path, root: str, is_one: bool) -> None:
    path = tmp_path / "1.xml"
    path.write_text(f'<?xml version="1.0"?>\n<{root} xmlns="http://www.nih.gov"/>')
    assert is_read_message(path) is is_one


def _large(path: Path) -> Path:
    path.write_text(f'<LidcReadMessage xmlns="http://www.nih.gov" a="{" " * LARGEST_FILE}"/>')
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<roi>", "<other><roi>", "is rated and has no outline"),
        ("<imageZposition>2.5 ", "<imageZposition>nan", "imageZposition is 'nan', not a number"),
        ("<imageZposition>2.5 ", "<imageZposition>1e999", "imageZposition is '1e999', not a number"),
        ("<xCoord>5<", "<xCoord>99999999999999999999<", "xCoord is '99999999999999999999', not a whole number"),
        ("<texture>5<", "<texture>" + "5" * 5000 + "<", "texture is '55555555555555555555', not a whole number"),
    ],
)
def test_what_no_reader_wrote_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_message(tmp_path / "bad.xml", [nodule_xml([(2.5, SQUARE)])])
    text = path.read_text().replace(old, new)
    path.write_text(text.replace("</roi>", "</roi></other>") if "<other>" in new else text)
    with pytest.raises(InputError, match=message):
        read_reading(path)


def test_a_file_too_large_to_be_a_reading_is_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1\.xml: larger than 16,777,216 bytes"):
        read_reading(_large(tmp_path / "1.xml"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_readings_in_other_encodings_and_with_prefixes_are_known(tmp_path: Path, encoding: str) -> None:
    path = write_message(tmp_path / "1.xml", [nodule_xml([(2.5, SQUARE)])])
    text = path.read_text().replace("UTF-8", encoding.removesuffix("-sig").upper())
    for old, new in (("xmlns=", "xmlns:l="), ("<", "<l:"), ("<l:/", "</l:"), ("<l:?", "<?")):
        text = text.replace(old, new)
    path.write_text(text, encoding=encoding)
    assert is_read_message(path)
    assert len(read_reading(path).scan.annotations) == 1


def _readings(folder: Path, files: dict[str, tuple[int, str]]) -> list[Reading]:
    """Files by name: the first reader's margin, and DateService."""
    readings = []
    for name, (margin, date) in files.items():
        path = write_message(folder / name, [nodule_xml([(2.5, SQUARE)], margin=margin)])
        path.write_text(path.read_text().replace("</ResponseHeader>", f"{date}</ResponseHeader>"))
        readings.append(read_reading(path))
    return readings


EARLY, LATE = (
    f"<DateService>{day}</DateService><TimeService>02:05:51</TimeService>" for day in ("2008-08-18", "2012-03-21")
)


@pytest.mark.parametrize(
    ("files", "chosen", "reason"),
    [
        ({"a/161.xml": (2, ""), "b/161.xml": (2, "")}, "a/161.xml", "holds the same reading"),
        ({"161.xml": (2, EARLY), "161-corrected.xml": (4, EARLY)}, "161-corrected.xml", "the corrected reading"),
        ({"a/161.xml": (2, LATE), "corrections/161.xml": (4, EARLY)}, "corrections/161.xml", "the corrected reading"),
        ({"a/161.xml": (2, EARLY), "b/161.xml": (4, LATE)}, "b/161.xml", "the latest reading"),
        ({"a/161.xml": (4, LATE), "b/161.xml": (2, EARLY)}, "a/161.xml", "the latest reading"),
        ({"a/161.xml": (4, ""), "b/161.xml": (2, EARLY)}, "b/161.xml", "the latest reading"),
        ({"a.xml": (2, EARLY), "b.xml": (4, LATE), "c.xml": (4, LATE)}, "b.xml", "the latest reading|the same reading"),
    ],
)
def test_the_reading_that_counts(tmp_path: Path, files: dict[str, tuple[int, str]], chosen: str, reason: str) -> None:
    scans, others = choose_readings(_readings(tmp_path, files))
    assert scans[SERIES_UID].annotations[0].ratings["margin"] == files[chosen][0]
    assert set(others) == {tmp_path / name for name in files if name != chosen}
    assert all(re.search(rf"{tmp_path / chosen} holds ({reason})|{reason}", why) for why in others.values())


@pytest.mark.parametrize(
    "files",
    [
        {"a/161.xml": (2, ""), "b/161.xml": (4, "")},
        {"a/161.xml": (2, LATE), "b/161.xml": (4, LATE)},
        {"corrected/a.xml": (2, EARLY), "corrected/b.xml": (4, EARLY)},
        {"incorrect/a.xml": (2, EARLY), "uncorrected/b.xml": (4, EARLY)},
    ],
)
def test_readings_that_differ_with_no_rule_to_tell_are_refused(
    tmp_path: Path, files: dict[str, tuple[int, str]]
) -> None:
    with pytest.raises(
        InputError, match=r"[ab/16]+\.xml and \S+\.xml: two readings of the series 2\.25\.1001 that differ"
    ):
        choose_readings(_readings(tmp_path, files))
