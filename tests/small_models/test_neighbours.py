from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from small_models.neighbours import enlarge_training

from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings

FINDINGS = Findings(5, 5, 5, 1, calcification=6, lobulation=1, malignancy=2).to_dict()


@pytest.fixture
def datalist(tmp_path: Path) -> dict[str, Any]:
    """One nodule of 8 mm in a volume of 9 slices, 1 mm apart; slice 7 is its centre."""
    volume = nibabel.Nifti1Image(np.zeros((4, 4, 9), np.int16), np.diag([0.5, 0.5, 1.0, 1.0]))
    nibabel.save(volume, tmp_path / "a.nii.gz")
    item = {"id": "a", "image": "a.nii.gz", "slice_index": 7, "diameter_mm": 8.0, "prompt": "p"}
    item |= {"findings": FINDINGS, "padding": 0}
    return {"dataset_dir": str(tmp_path), "training": [item], "validation": [item], "numTraining": 1}


def test_neighbours_lie_within_reach_and_within_the_volume(datalist: dict[str, Any]) -> None:
    enlarged = enlarge_training(datalist, reach=0.25, slices=4)
    places = {item["id"]: item["slice_index"] for item in enlarged["training"]}
    assert places == {"a": 7, "a_z-2": 5, "a_z-1": 6, "a_z+1": 8}
    assert {item["prompt"] for item in enlarged["training"]} == {"p"}
    assert enlarged["numTraining"] == 4
    assert enlarged["validation"] == datalist["validation"]
    assert len(datalist["training"]) == 1


def test_every_nodule_comes_equally_often_and_the_nearest_slices_first(datalist: dict[str, Any]) -> None:
    thick = {**datalist["training"][0], "id": "b", "diameter_mm": 3.0}
    datalist["training"].append(thick)
    places = {item["id"]: item["slice_index"] for item in enlarge_training(datalist, slices=3)["training"]}
    assert places == {"a": 7, "a_z-1": 6, "a_z+1": 8, "b": 7, "b_2": 7, "b_3": 7}


def test_the_centre_comes_again_in_other_words(datalist: dict[str, Any]) -> None:
    enlarged = enlarge_training(datalist, reach=0, template="detailed", slices=1)
    assert [item["id"] for item in enlarged["training"]] == ["a", "a_detailed"]
    assert "No lobulation is seen." in enlarged["training"][1]["prompt"]


@pytest.mark.parametrize(
    ("reach", "place", "culprit"), [(0.5, 7, "reach"), (-0.1, 7, "reach"), (0.2, None, "a.nii.gz")]
)
def test_what_makes_no_sense_is_refused(datalist: dict[str, Any], reach: float, place: Any, culprit: str) -> None:
    datalist["training"][0]["slice_index"] = place
    with pytest.raises(InputError, match=culprit):
        enlarge_training(datalist, reach)


def test_nodules_with_a_rare_finding_come_twice(datalist: dict[str, Any]) -> None:
    (item,) = datalist["training"]
    common = [{**item, "id": f"c{number}"} for number in range(9)]
    datalist["training"] = [*common, {**item, "id": "r", "findings": {**FINDINGS, "texture": 3}}]
    options = {"reach": 0, "slices": 1}
    doubled = enlarge_training(datalist, template="detailed", rare=0.2, **options)
    names = [found["id"] for found in doubled["training"]]
    assert names[-4:] == ["r", "r_detailed", "r_again", "r_detailed_again"]
    assert sum(name.startswith("c") for name in names) == 18
    assert len(enlarge_training(datalist, rare=0.1, **options)["training"]) == 10
