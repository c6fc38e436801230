from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import (
    COMPRESSED,
    SERIES_UID,
    SQUARE,
    compress,
    nodule_xml,
    write_message,
    write_series,
    write_slice,
)
from permissions import unprivileged

from nodule_plugin.data.lidc_tree import nodules_from_lidc
from nodule_plugin.data.nodule import NoduleSet
from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.sources import load_nodules
from nodule_plugin.data.transforms import read_slice
from nodule_plugin.data.window import hu_to_unit
from nodule_plugin.errors import InputError
from nodule_plugin.lidc import series as module
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.selection import Selection
from nodule_plugin.lidc.summary import scans_from_xml

Z = [0.0, 2.5, 5.0, 7.5, 10.0]
FAR = [(13, 13), (13, 15), (15, 15), (15, 13)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One series with a nodule of two readers, centred on z = 5, and one of a single reader at z = 10."""
    write_series(tmp_path, Z)
    first = nodule_xml([(z, SQUARE) for z in (2.5, 5.0, 7.5)], margin=2, texture=5) + nodule_xml([(10.0, FAR)])
    second = nodule_xml([(5.0, SQUARE)], margin=3, texture=4)
    write_message(tmp_path / "reading.xml", [first, second])
    return tmp_path


def test_nodule(tree: Path) -> None:
    found = nodules_from_lidc(tree)
    assert (found.source, found.root, found.consensus) == ("lidc-idri", tree, "median")
    assert [nodule.id for nodule in found.nodules] == ["TEST-0001-N01", "TEST-0001-N02"]
    nodule = found.nodules[0]
    assert (read_slice(nodule.image, nodule.slice_index) == 5).all()
    assert nodule.centre == (7.0, 8.0)
    assert nodule.diameter_mm == pytest.approx(0.5 * np.sqrt(72))
    assert (nodule.spacing, nodule.shape, nodule.readers) == ((0.5, 0.5), (16, 16), 2)
    assert (nodule.findings.margin, nodule.findings.texture) == (3, 5)
    assert not nodule.synthetic
    assert found.skipped == []


def test_each_reading(tree: Path) -> None:
    found = nodules_from_lidc(tree, rule="each")
    assert [n.id for n in found.nodules] == ["TEST-0001-N01-R1", "TEST-0001-N01-R2", "TEST-0001-N02-R1"]
    assert [n.findings.margin for n in found.nodules] == [2, 3, 4]
    assert all(n.readers == 1 for n in found.nodules)


def test_nodules_with_fewer_readings_are_listed(tree: Path) -> None:
    found = nodules_from_lidc(tree, rule="reader:2")
    assert [n.id for n in found.nodules] == ["TEST-0001-N01-R2"]
    assert [(s.what, s.reason) for s in found.skipped] == [("TEST-0001-N02", "fewer readings than reader:2 needs")]


def test_selection_keeps_the_ids(tree: Path) -> None:
    found = nodules_from_lidc(tree, selection=Selection(max_readers=1))
    assert [nodule.id for nodule in found.nodules] == ["TEST-0001-N02"]
    assert [(s.what, s.reason) for s in found.skipped] == [("TEST-0001-N01", "readers above 1")]


def _file_at(tree: Path, z: float) -> Path:
    return next(path for path in tree.glob("*.dcm") if read_slice(path, None)[0, 0] == round(z))


def test_missing_centre_slice_skips_the_nodule(tree: Path) -> None:
    _file_at(tree, 10.0).unlink()
    found = nodules_from_lidc(tree)
    assert [nodule.id for nodule in found.nodules] == ["TEST-0001-N01"]
    assert [s.reason for s in found.skipped] == [
        "its centre slice at z = 10 mm is missing; the nearest is 2.5 mm away",
    ]


def test_broken_file_is_an_error_unless_skipped(tree: Path) -> None:
    broken = _file_at(tree, 10.0)
    os.truncate(broken, 900)
    with pytest.raises(InputError, match=rf"{broken}: truncated: .*; get the file anew, or set skip_broken"):
        nodules_from_lidc(tree)
    found = nodules_from_lidc(tree, skip_broken=True)
    assert [nodule.id for nodule in found.nodules] == ["TEST-0001-N01"]
    assert found.skipped[0].what == str(broken)


def test_of_two_readings_of_a_series_the_corrected_one_counts_and_the_other_is_listed(tree: Path) -> None:
    """As with 161.xml of patient LIDC-IDRI-0101: the first version, first by path, outlines nine times the nodule."""
    corrected = (tree / "reading.xml").rename(tree / "reading-corrected.xml")
    wrong = write_message(tree / "a.xml", [nodule_xml([(5.0, [(0, 0), (0, 15), (15, 15), (15, 0)])])])
    result = nodules_from_lidc(tree, annotations="xml")
    assert result.nodules[0].diameter_mm == pytest.approx(0.5 * np.sqrt(72))
    assert [(s.what, s.reason) for s in result.skipped] == [
        (str(wrong), f"{corrected} holds the corrected reading of its series")
    ]
    assert len(scans_from_xml(tree)) == 1
    corrected.rename(tree / "reading.xml")
    with pytest.raises(InputError, match=rf"{wrong} and {tree / 'reading.xml'}: two readings"):
        nodules_from_lidc(tree, annotations="xml")


def test_outlines_that_lie_outside_the_slice_are_listed(tree: Path) -> None:
    """Readings of the same series before it was resampled or cut."""
    far = [(x + 300, y + 300) for x, y in FAR]
    write_message(tree / "reading.xml", [nodule_xml([(5.0, SQUARE)]) + nodule_xml([(5.0, far)])])
    result = nodules_from_lidc(tree)
    assert [nodule.id for nodule in result.nodules] == ["TEST-0001-N01"]
    assert [s.reason for s in result.skipped] == ["its outlines lie outside its slice of 16 x 16 pixels"]


def test_duplicates_are_left_out_and_counted(tree: Path) -> None:
    before = nodules_from_lidc(tree)
    for z in (2.5, 5.0):
        shutil.copy(_file_at(tree, z), tree / f"copy of {z}.dcm")
    found = nodules_from_lidc(tree)
    assert [replace(nodule, image=Path()) for nodule in found.nodules] == [
        replace(nodule, image=Path()) for nodule in before.nodules
    ]
    assert [(s.what, s.reason) for s in found.skipped] == [
        (
            f"series {SERIES_UID}",
            "2 files at positions that other files of the series hold, such as copy of 2.5.dcm",
        )
    ]


def test_tilted_series(tmp_path: Path) -> None:
    """The readers' contours name slices by z, whatever the tilt."""
    tilt = np.deg2rad(15)
    for number in range(5):
        z = 2.5 * number
        write_slice(
            tmp_path / f"{9 - number}.dcm",
            z,
            ImagePositionPatient=[-10, -200, z],
            ImageOrientationPatient=[1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)],
        )
    write_message(tmp_path / "reading.xml", [nodule_xml([(z, SQUARE) for z in (5.0, 7.5, 10.0)])])
    [nodule] = nodules_from_lidc(tmp_path).nodules
    assert read_slice(nodule.image, None)[0, 0] == 8  # round(7.5)
    nodule.image.unlink()
    found = nodules_from_lidc(tmp_path)
    assert not found.nodules
    assert found.skipped[0].reason == "its centre slice at z = 7.5 mm is missing; the nearest is 2.41481 mm away"


def test_series_of_another_uid_is_not_annotated(tree: Path) -> None:
    for path in tree.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = "2.25.77"
        dataset.save_as(path)
    with pytest.raises(InputError, match=r"none of its 1 CT series is annotated .*; give the folder that holds"):
        nodules_from_lidc(tree)


def test_file_of_another_study_is_an_error_unless_skipped(tree: Path) -> None:
    odd = write_slice(tree / "odd.dcm", 12.5, StudyInstanceUID="2.25.9")
    with pytest.raises(InputError, match=rf"{odd}: its StudyInstanceUID is 2.25.9, .*, or set skip_broken to go on"):
        nodules_from_lidc(tree)
    found = nodules_from_lidc(tree, skip_broken=True)
    assert len(found.nodules) == 2
    assert found.skipped[0].what == str(odd)


def test_xml_that_cannot_be_read_is_named(public_folder: Path) -> None:
    write_series(public_folder, Z)
    message = write_message(public_folder / "reading.xml", [nodule_xml([(5.0, SQUARE)])])
    message.chmod(0)
    with unprivileged(), pytest.raises(InputError, match=rf"{message}: cannot be read \(Permission denied\)"):
        nodules_from_lidc(public_folder)


def test_other_modalities_are_passed_over(tree: Path) -> None:
    before = nodules_from_lidc(tree)
    for name, uid in (("CR", "1.2.840.10008.5.1.4.1.1.1"), ("DX", "1.2.840.10008.5.1.4.1.1.1.1")):
        write_slice(tree / f"{name}.dcm", 5.0, SOPClassUID=uid, Modality=name, SeriesInstanceUID=f"2.25.{len(uid)}")
    assert nodules_from_lidc(tree) == before


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_series_give_the_same(tree: Path, syntax: str) -> None:
    before = nodules_from_lidc(tree)
    for path in tree.glob("*.dcm"):
        compress(path, syntax)
    assert nodules_from_lidc(tree) == before
    assert (read_slice(before.nodules[0].image, None) == 5).all()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve series of two readers each, some of one patient, and one series that nobody read."""
    root = tmp_path_factory.mktemp("series")
    for number in range(13):
        uid = f"2.25.{50 + number}"
        folder = root / f"{(5 * number) % 13}"
        write_series(folder, Z, SeriesInstanceUID=uid, PatientID=f"TEST-{number % 9:04d}")
        if number < 12:
            readings = [nodule_xml([(z, SQUARE)], margin=1 + number % 5) for z in (2.5, 5.0)]
            write_message(folder / "reading.xml", readings, series_uid=uid)
    return root


@pytest.mark.parametrize("backend", ["processes", "dask", "ray"])
def test_whoever_works_the_result_is_the_same(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (extra 'ray')")
    monkeypatch.setattr(module, "_BATCH", 4)
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    expected = load_nodules(series, index_file=alone)
    assert len(expected.nodules) == 12
    assert [s.reason for s in expected.skipped] == ["no annotations"]
    assert load_nodules(series, index_file=together, parallel=backend, num_workers=2) == expected
    assert together.read_text() == alone.read_text()


def test_uneven_spacing_takes_the_slice_nearest_in_mm(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 1.0, 2.0, 12.0, 13.0])
    write_message(tmp_path / "reading.xml", [nodule_xml([(2.0, SQUARE), (12.0, SQUARE), (13.0, SQUARE)])])
    [nodule] = nodules_from_lidc(tmp_path).nodules
    assert read_slice(nodule.image, None)[0, 0] == 12  # mean z 9; by slice numbers it would be 2


def test_zero_size_and_code_off_its_scale_are_reported(tmp_path: Path) -> None:
    write_series(tmp_path, Z)
    point = nodule_xml([(0.0, [(1, 1)])])
    write_message(tmp_path / "reading.xml", [point + nodule_xml([(5.0, SQUARE)], internalStructure=5)])
    found = nodules_from_lidc(tmp_path)
    assert [nodule.id for nodule in found.nodules] == ["TEST-0001-N02"]
    assert found.nodules[0].findings.internal_structure is None
    assert [s.what for s in found.skipped] == ["TEST-0001-N01", "TEST-0001-N02"]
    assert "single points" in found.skipped[0].reason
    assert "internal_structure 5 is not on the scale" in found.skipped[1].reason


def test_second_scan_of_a_patient_and_one_without_annotations(tree: Path) -> None:
    write_series(tree / "second", Z, SeriesInstanceUID="2.25.2", SyntheticData="YES")
    write_message(tree / "second" / "reading.xml", [nodule_xml([(5.0, SQUARE)])], series_uid="2.25.2")
    write_slice(tree / "third" / "1.dcm", 0, SeriesInstanceUID="2.25.3")
    found = nodules_from_lidc(tree)
    assert [n.id for n in found.nodules] == ["TEST-0001-N01", "TEST-0001-N02", "TEST-0001-S2-N01"]
    assert [n.synthetic for n in found.nodules] == [False, False, True]
    assert found.source == "lidc-idri"
    assert nodules_from_lidc(tree / "second").source == "phantom"
    assert [(s.what, s.reason) for s in found.skipped] == [("series 2.25.3", "no annotations")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"annotations": "database"}, "none of its 1 CT series is annotated"),
        ({"annotations": "json"}, "annotations: there is no 'json'"),
        ({"rule": "vote"}, "consensus: there is no rule 'vote'"),
    ],
)
def test_errors(tree: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nodules_from_lidc(tree, **arguments)  # type: ignore[arg-type]


def test_real_series_by_database_and_by_xml(real_data: Path, real_tree: NoduleSet) -> None:
    by_database = real_tree
    by_xml = nodules_from_lidc(real_data / "lidc_idri", annotations="xml")
    assert by_database.nodules == by_xml.nodules
    assert [nodule.id for nodule in by_database.nodules] == [
        "LIDC-IDRI-0001-N01",
        *(f"LIDC-IDRI-0003-N0{n}" for n in range(1, 5)),
    ]
    assert [nodule.readers for nodule in by_database.nodules] == [4, 1, 4, 4, 4]
    assert by_database.skipped == []


@pytest.mark.parametrize(
    ("crop_id", "nodule_id"),
    [
        ("LIDC-IDRI-0001_R_1", "LIDC-IDRI-0001-N01"),
        ("LIDC-IDRI-0003_R_2", "LIDC-IDRI-0003-N02"),
        ("LIDC-IDRI-0003_R_3", "LIDC-IDRI-0003-N03"),
        ("LIDC-IDRI-0003_R_4", "LIDC-IDRI-0003-N04"),
    ],
)
def test_roi_of_series_and_of_crop_agree_voxel_by_voxel(
    real_crops: NoduleSet, real_tree: NoduleSet, crop_id: str, nodule_id: str
) -> None:
    crop = next(nodule for nodule in real_crops.nodules if nodule.id == crop_id)
    whole = next(nodule for nodule in real_tree.nodules if nodule.id == nodule_id)
    # Where the crop lies in the slice, from the positions in both headers, x and y turned as NIfTI has them.
    header = pydicom.dcmread(whole.image, stop_before_pixels=True)
    affine = nib.load(crop.image).affine  # type: ignore[attr-defined]
    column, row = (-affine[:2, 3] - np.array(header.ImagePositionPatient[:2], float)) / np.array(whole.spacing)[::-1]
    assert crop.slice_index is not None
    assert affine[2, 3] + crop.slice_index * affine[2, 2] == pytest.approx(float(header.ImagePositionPatient[2]))
    offset = np.array([round(row), round(column)])
    assert np.hypot(*(np.array(crop.centre) + offset - whole.centre)) < 2
    # The ROI that training cuts, twice the diameter, is the same from either wherever the crop has voxels.
    from_crop = read_slice(crop.image, crop.slice_index)
    bounds = np.array(roi_bounds(whole.centre, whole.spacing, 2 * whole.diameter_mm)).reshape(2, 2)
    (first_row, last_row), (first_column, last_column) = [
        np.clip(edges - shift, 0, size) for edges, shift, size in zip(bounds, offset, from_crop.shape)
    ]
    shared = from_crop[first_row:last_row, first_column:last_column]
    rows = slice(first_row + offset[0], last_row + offset[0])
    columns = slice(first_column + offset[1], last_column + offset[1])
    assert shared.size > 500  # the crops of the two largest nodules hold less than half of their ROI
    assert np.array_equal(read_slice(whole.image, None)[rows, columns], shared)


@pytest.mark.parametrize(
    ("patient", "outside", "highest"), [("LIDC-IDRI-0001", 7_417_676, 3071), ("LIDC-IDRI-0003", 7_808_080, 5892)]
)
def test_real_values_beyond_tissue(real_data: Path, patient: str, outside: int, highest: int) -> None:
    """What lies outside the field of view (-2048 here) becomes air, metal keeps its value, the rest is untouched."""
    low, high = 0, -1024.0
    for path in (real_data / "lidc_idri" / patient).rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        raw = dataset.pixel_array.astype(np.float32) - 1024
        hu = read_slice(path, None)
        assert np.array_equal(hu[raw >= -1024], raw[raw >= -1024])
        assert (hu[raw < -1024] == -1024).all()
        assert (hu_to_unit(hu)[raw < -1000] == -1).all()
        assert (hu_to_unit(hu)[raw > 400] == 1).all()
        low += int((raw == -2048).sum())
        high = max(high, float(hu.max()))
    assert (low, high) == (outside, highest)


@pytest.mark.parametrize("annotations", ["auto", "database", "xml"])
def test_series_of_the_database_are_known_by_their_uid(tmp_path: Path, annotations: str) -> None:
    """Whatever the patient is called in the files; a second scan keeps its number where the first is not there."""
    first, second = [scan for scan in load_scans() if scan.patient_id == "LIDC-IDRI-0132"]
    assert first.annotations
    cluster = cluster_annotations(second)[0]
    contour = cluster[0].contours[0]
    outlined = {contour.z for annotation in second.annotations for contour in annotation.contours}
    near = [z for z in second.slice_z if min(abs(z - other) for other in outlined) < 3]
    write_series(tmp_path, near, size=512, SeriesInstanceUID=second.series_instance_uid, PatientID="anonymous")
    points = [(int(column), int(row)) for row, column in contour.points]
    xml = nodule_xml([(contour.z, points)])
    write_message(tmp_path / "reading.xml", [xml], series_uid=second.series_instance_uid)
    found = nodules_from_lidc(tmp_path, annotations=annotations)
    assert found.nodules[0].id == "LIDC-IDRI-0132-S2-N01"
    assert len(found.nodules) == (1 if annotations == "xml" else len(cluster_annotations(second)))
