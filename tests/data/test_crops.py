from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.nodule import NoduleSet
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.selection import Selection
from tests.data.crops_folder import write_crops, write_volume


def test_nodule(tmp_path: Path) -> None:
    found = nodules_from_crops(write_crops(tmp_path))
    [nodule] = found.nodules
    assert (found.source, found.consensus, found.root) == ("crops", "given", tmp_path)
    assert (nodule.id, nodule.patient_id, nodule.series_instance_uid) == ("P0_R_1", "P0", "2.25.1")
    assert (nodule.slice_index, nodule.centre, nodule.shape) == (3, (12.0, 8.0), (30, 20))
    assert nodule.spacing == pytest.approx((0.7, 0.5))
    assert (nodule.diameter_mm, nodule.readers, nodule.synthetic) == (6.5, 3, False)
    assert (nodule.findings.margin, nodule.findings.calcification, nodule.findings.malignancy) == (4, 6, 3)


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
        (np.ones((20, 30, 4), np.uint8), r"has shape \(20, 30, 4\), its image \(20, 30, 5\)"),
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


def test_real_crops(real_crops: NoduleSet) -> None:
    nodules = real_crops.nodules
    assert len(nodules) == 838
    assert len({nodule.patient_id for nodule in nodules}) == 472
    assert [sum(n.findings.malignancy == code for n in nodules) for code in range(1, 6)] == [147, 187, 298, 97, 109]
    assert (nodules[0].id, nodules[0].slice_index, nodules[0].shape) == ("LIDC-IDRI-0001_R_1", 5, (64, 53))
    assert nodules[0].centre == pytest.approx((33.2, 24.08), abs=0.01)
