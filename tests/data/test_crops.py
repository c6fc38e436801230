from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crops_folder import write_crops, write_volume

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.nodule import NoduleSet
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.selection import Selection


def test_nodule(tmp_path: Path) -> None:
    found = nodules_from_crops(write_crops(tmp_path))
    [nodule] = found.nodules
    assert (found.source, found.consensus, found.root) == ("crops", "given", tmp_path)
    assert (nodule.id, nodule.patient_id, nodule.series_instance_uid) == ("P0_R_1", "P0", "2.25.1")
    assert (nodule.slice_index, nodule.centre, nodule.shape) == (3, (12.0, 8.0), (30, 20))
    assert nodule.spacing == pytest.approx((0.7, 0.5))
    assert (nodule.diameter_mm, nodule.readers, nodule.synthetic) == (6.5, 3, False)
    assert (nodule.findings.margin, nodule.findings.calcification, nodule.findings.malignancy) == (4, 6, 3)


def test_a_patient_spelt_in_two_ways_is_one(tmp_path: Path) -> None:
    ids = [
        nodules_from_crops(write_crops(tmp_path / form, patient_id=unicodedata.normalize(form, "Zoé"))).nodules
        for form in ("NFC", "NFD")
    ]
    assert ids[0][0].patient_id == ids[1][0].patient_id


def test_without_masks_the_middle_is_the_centre(tmp_path: Path) -> None:
    [nodule] = nodules_from_crops(write_crops(tmp_path, masks=False)).nodules
    assert (nodule.slice_index, nodule.centre) == (2, (14.5, 9.5))


def test_mask_in_two_pieces_gives_a_slice_that_it_touches(tmp_path: Path) -> None:
    write_crops(tmp_path)
    mask = np.zeros((20, 30, 5), np.uint8)
    mask[4, 4, 0] = mask[8, 8, 4] = 1
    write_volume(tmp_path / "masks" / "P0_R_1.nii.gz", mask)
    [nodule] = nodules_from_crops(tmp_path).nodules
    assert (nodule.slice_index, nodule.centre) == (0, (4.0, 4.0))


def test_optional_cells_may_be_empty_or_absent(tmp_path: Path) -> None:
    cells = {"lobulation": "", "malignancy": None, "readers": None, "series_instance_uid": None, "subtlety": "4.0"}
    [nodule] = nodules_from_crops(write_crops(tmp_path, **cells)).nodules
    assert (nodule.findings.lobulation, nodule.findings.malignancy, nodule.findings.subtlety) == (None, None, 4)
    assert (nodule.readers, nodule.series_instance_uid) == (1, "")


@pytest.mark.parametrize(
    ("sidecar", "source", "synthetic"),
    [
        ({"synthetic": True, "source": "phantom"}, "phantom", True),
        ({"synthetic": True}, "crops", True),
        ({"synthetic": False, "source": "phantom"}, "crops", False),
        ({}, "crops", False),
    ],
)
def test_sidecar_marks_synthetic_crops(tmp_path: Path, sidecar: dict[str, Any], source: str, synthetic: bool) -> None:
    write_crops(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(sidecar))
    found = nodules_from_crops(tmp_path)
    assert (found.source, found.nodules[0].synthetic) == (source, synthetic)


def test_selection(tmp_path: Path) -> None:
    found = nodules_from_crops(write_crops(tmp_path, count=2), Selection(min_readers=4))
    assert found.nodules == []
    assert [(s.what, s.reason) for s in found.skipped] == [("P0_R_1", "readers below 4"), ("P1_R_1", "readers below 4")]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"margin": None}, r"nodules\.csv: the column 'margin' is missing"),
        ({"spiculation": "7"}, r"nodules\.csv: line 2: spiculation: .*1 to 5.*7"),
        ({"spiculation": "2.5"}, r"line 2: spiculation is '2\.5'; a rating is a whole number"),
        ({"texture": "solid"}, r"line 2: texture is 'solid', not a number"),
        ({"texture": ""}, r"line 2: texture is empty"),
        ({"diameter_mm": "-3"}, r"line 2: diameter_mm is '-3'; a number above 0 is needed"),
        ({"diameter_mm": "nan"}, r"line 2: diameter_mm is 'nan'; a number above 0 is needed"),
        ({"internal_structure": "5"}, r"line 2: internal_structure: .*1 to 4.*5"),
        ({"image": "images/gone.nii.gz"}, r"line 2: there is no file .*gone\.nii\.gz"),
        ({"image": "../gone.nii.gz"}, r"line 2: image '\.\./gone\.nii\.gz' is not below .*; move it there"),
        ({"image": "/gone.nii.gz"}, r"line 2: image '/gone\.nii\.gz' is not below .*; move it there"),
    ],
)
def test_table_errors_name_line_and_value(tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        nodules_from_crops(write_crops(tmp_path, **cells))
    assert "\n" not in str(caught.value)


def test_same_name_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3: image .* has the name of line 2's"):
        nodules_from_crops(write_crops(tmp_path, count=2, image="images/P0_R_1.nii.gz"))


@pytest.mark.parametrize("folder", ["images", "masks"])
@pytest.mark.parametrize("keep", [0, 40, 120])
def test_truncated_volume_is_named(tmp_path: Path, folder: str, keep: int) -> None:
    write_crops(tmp_path)
    path = tmp_path / folder / "P0_R_1.nii.gz"
    os.truncate(path, keep)
    with pytest.raises(InputError, match=rf"line 2: {path} is not a whole NIfTI file"):
        nodules_from_crops(tmp_path)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((20, 30, 5), np.uint8), "marks no voxel"),
        (np.full((20, 30, 5), np.nan, np.float32), "values that are not finite"),
        (np.ones((20, 30, 4), np.uint8), r"has shape \(20, 30, 4\) .*, its image \(20, 30, 5\)"),
        (np.ones((20, 30), np.uint8), r"has shape \(20, 30\); a volume \(x, y, z\) is needed"),
    ],
)
def test_useless_masks(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    write_crops(tmp_path)
    write_volume(tmp_path / "masks" / "P0_R_1.nii.gz", mask)
    with pytest.raises(InputError, match=message):
        nodules_from_crops(tmp_path)


def test_missing_mask_is_named(tmp_path: Path) -> None:
    write_crops(tmp_path)
    (tmp_path / "masks" / "P0_R_1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"line 2: there is no file .*masks"):
        nodules_from_crops(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b""])
def test_table_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "nodules.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"nodules\.csv: (cannot be read|the column 'image' is missing)"):
        nodules_from_crops(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_sidecar_that_is_none(tmp_path: Path, content: str) -> None:
    write_crops(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json"):
        nodules_from_crops(tmp_path)


LUNG = np.random.default_rng(0).normal(-850, 30, (20, 30, 5)).clip(-1000)
LUNG[6:11, 10:15, 2:5], LUNG[0, 0, 0] = 40.0, -1000.0
WITH_HOLES = LUNG.copy()
WITH_HOLES[0, 0, :2] = np.nan, np.inf


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        ((LUNG + 1000) / 1400, "its values run from 0 to 0.742857, as images scaled for a network have"),
        ((LUNG + 300) / 700, "its values run from -1 to 0.485714, as images scaled for a network have"),
        (((LUNG + 1000) / 1400 * 255).astype(np.uint8), "from 0 to 189, as pictures of 8 bits have"),
        ((LUNG + 1024).astype(np.uint16), "from 24 to 1064, as stored values have before the rescale intercept"),
        (LUNG.astype(np.int16).view(np.uint16), "from 40 to 64[0-9]+, as stored values have"),
        (WITH_HOLES, "2 of its voxels are not finite"),
    ],
)
def test_values_that_are_no_hounsfield_units_are_named(tmp_path: Path, voxels: np.ndarray, message: str) -> None:
    voxels = voxels.astype(np.float32) if voxels.dtype == float else voxels
    write_volume(write_crops(tmp_path) / "images" / "P0_R_1.nii.gz", voxels)
    with pytest.raises(InputError, match=rf"nodules\.csv: line 2: \S+P0_R_1\.nii\.gz: .*{message}"):
        nodules_from_crops(tmp_path)


@pytest.mark.parametrize(
    ("voxels", "doubts"),
    [
        (LUNG, []),
        (np.where(LUNG < -900, -2000, LUNG + 1024), ["hardly a voxel as dark as lung"]),  # padding, else shifted
        (LUNG - 1024, ["mostly voxels darker than air"]),
        (np.full_like(LUNG, -700), ["one value throughout"]),
    ],
)
def test_values_that_are_doubtful_are_listed(tmp_path: Path, voxels: np.ndarray, doubts: list[str]) -> None:
    write_volume(write_crops(tmp_path) / "images" / "P0_R_1.nii.gz", voxels.astype(np.int16))
    given = nodules_from_crops(tmp_path).doubts
    assert [doubt.what for doubt in given] == ["P0_R_1"] * len(doubts)
    assert all(doubt.reason.startswith(start) for doubt, start in zip(given, doubts))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("separator", "decimal"), [(";", ","), (";", "."), ("\t", ","), ("\t", "."), (",", ".")])
def test_tables_of_every_spreadsheet_are_read_alike(
    tmp_path: Path, separator: str, decimal: str, encoding: str
) -> None:
    [expected] = nodules_from_crops(write_crops(tmp_path)).nodules
    table = tmp_path / "nodules.csv"
    cells = [line.split(",") for line in table.read_text().splitlines()]
    lines = [separator.join(row).replace("6.5", f"6{decimal}5") for row in cells]
    table.write_bytes("\r\n".join(lines).encode(encoding))
    assert nodules_from_crops(tmp_path).nodules == [expected]


def test_columns_are_named_as_they_are(tmp_path: Path) -> None:
    table = write_crops(tmp_path) / "nodules.csv"
    text = table.read_text()
    table.write_text("sep=;\n" + text.replace(",", ";"))  # as Excel writes it
    with pytest.raises(InputError, match=r"the column 'image' is missing; .*, and there are sep="):
        nodules_from_crops(tmp_path)
    table.write_text(text.replace("readers", "margin"))
    with pytest.raises(InputError, match=r"nodules\.csv: the column 'margin' is there twice; delete one"):
        nodules_from_crops(tmp_path)


def test_a_decimal_comma_among_commas_is_named(tmp_path: Path) -> None:
    table = write_crops(tmp_path) / "nodules.csv"
    table.write_text(table.read_text().replace("6.5", "6,5"))
    with pytest.raises(InputError, match=r"line 2: more cells than columns; write 9.5 rather than 9,5"):
        nodules_from_crops(tmp_path)


@pytest.mark.parametrize("diameter", ["301", "1e300"])
def test_a_nodule_is_not_larger_than_a_lung(tmp_path: Path, diameter: str) -> None:
    with pytest.raises(InputError, match=rf"line 2: diameter_mm is '{diameter}'; mm are needed, at most 300"):
        nodules_from_crops(write_crops(tmp_path, diameter_mm=diameter))


def test_real_crops(real_crops: NoduleSet) -> None:
    nodules = real_crops.nodules
    assert len(nodules) == 838
    assert len({nodule.patient_id for nodule in nodules}) == 472
    assert [sum(n.findings.malignancy == code for n in nodules) for code in range(1, 6)] == [147, 187, 298, 97, 109]
    assert (nodules[0].id, nodules[0].slice_index, nodules[0].shape) == ("LIDC-IDRI-0001_R_1", 5, (64, 53))
    assert nodules[0].centre == pytest.approx((33.2, 24.08), abs=0.01)
    # Fifteen are of patients who lay prone: their slices are turned by half a turn. No other is.
    assert [sum(n.axes == axes for n in nodules) for axes in ("LPS", "RAS")] == [823, 15]
    assert real_crops.doubts == []
