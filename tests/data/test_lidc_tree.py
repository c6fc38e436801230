from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import SQUARE, nodule_xml, write_message, write_series, write_slice

from nodule_plugin.data.lidc_tree import nodules_from_lidc
from nodule_plugin.data.nodule import NoduleSet
from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.transforms import read_slice
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.selection import Selection

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
    # The same ROI cut from either is the same wherever the crop has voxels.
    start_row, stop_row, start_column, stop_column = roi_bounds(whole.centre, whole.spacing, crop.diameter_mm)
    from_series = read_slice(whole.image, None)[start_row:stop_row, start_column:stop_column]
    shifted = (whole.centre[0] - offset[0], whole.centre[1] - offset[1])
    start_row, stop_row, start_column, stop_column = roi_bounds(shifted, crop.spacing, crop.diameter_mm)
    from_crop = read_slice(crop.image, crop.slice_index)[start_row:stop_row, start_column:stop_column]
    assert from_series.size > 50
    assert np.array_equal(from_series, from_crop)


@pytest.mark.parametrize("annotations", ["auto", "database", "xml"])
def test_series_of_the_database_are_known_by_their_uid(tmp_path: Path, annotations: str) -> None:
    """Whatever the patient is called in the files; a second scan keeps its number where the first is not there."""
    first, second = load_scans(patient_ids=["LIDC-IDRI-0132"])
    assert first.annotations
    cluster = cluster_annotations(second)[0]
    contour = cluster[0].contours[0]
    write_series(tmp_path, list(second.slice_z), SeriesInstanceUID=second.series_instance_uid, PatientID="anonymous")
    points = [(int(column), int(row)) for row, column in contour.points]
    xml = nodule_xml([(contour.z, points)])
    write_message(tmp_path / "reading.xml", [xml], series_uid=second.series_instance_uid)
    found = nodules_from_lidc(tmp_path, annotations=annotations)
    assert found.nodules[0].id == "LIDC-IDRI-0132-S2-N01"
    assert len(found.nodules) == (1 if annotations == "xml" else len(cluster_annotations(second)))
