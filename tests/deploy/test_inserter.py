from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ct_hosts import FINDINGS
from monai.bundle import ConfigWorkflow

from nodule_plugin.deploy.inserter import BundleInserter
from nodule_plugin.errors import InputError

QUICK = {"device": "cpu", "created": "2026-01-31T12:00:00"}
NODULE = {"position": [30, 12, 2], "diameter_mm": 5, "findings": FINDINGS, "steps": 2}


@pytest.fixture(scope="module")
def inserter(bundle: Path) -> BundleInserter:
    return BundleInserter(bundle, QUICK)


def test_what_is_written_is_what_the_command_writes(
    inserter: BundleInserter, bundle: Path, host: Path, tmp_path: Path
) -> None:
    config, output = str(bundle / "configs" / "insert.json"), str(tmp_path / "command")
    settings = {"bundle_root": str(bundle), "series": str(host), "output_dir": output, **QUICK, **NODULE, "seeds": 3}
    flow = ConfigWorkflow(config, workflow_type="inference", run_id="run", logging_file=False, **settings)
    flow.initialize()
    flow.run()
    shutil.copytree(host, tmp_path / "in" / "series")
    (tmp_path / "in" / "order.json").write_text("{}")
    made = inserter({"insert": {**NODULE, "seeds": 3}}, tmp_path / "in", tmp_path / "out")
    assert made == tmp_path / "out" / "inserted"
    files = {path.relative_to(made): path.read_bytes() for path in made.rglob("*.*")}
    assert {"volume.nii.gz", "mask.nii.gz", "report.dcm", "segmentation_binary.dcm"} <= {path.name for path in files}
    assert files == {path.relative_to(output): path.read_bytes() for path in Path(output).rglob("*.*")}


def test_an_order_may_hold_what_the_command_takes(inserter: BundleInserter) -> None:
    lesion = {name: NODULE[name] for name in ("position", "diameter_mm", "findings")}
    order = inserter.read(
        {"lesions": [lesion, {"position": "1,2,3"}], "prompt": "A nodule.", "diameter_mm": 4, "seeds": [0, 5]}
        | {"patient": "keep", "study": "host", "guidance_scale": "1.5", "coordinates": "voxel"}
    )
    assert [(each.position, each.diameter_mm) for each in order.lesions] == [((30, 12, 2), 5), ((1, 2, 3), 4)]
    assert (order.lesions[0].findings is None, order.lesions[1].prompt) == (False, "A nodule.")
    assert order.seeds == [0, 5]
    assert vars(order.insertion.belonging) == {"patient": "keep", "study": "host"}  # type: ignore[attr-defined]
    assert (order.insertion.guidance_scale, order.insertion.coordinates) == (1.5, "voxel")
    left_out = inserter.read({"random": 2, "diameter_mm": 4, "prompt": "$1 / 0"})
    assert [each.prompt for each in left_out.lesions] == ["$1 / 0"] * 2
    assert (left_out.seeds, left_out.insertion) == ([0], inserter.insertion)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1], "insert: an object such as"),
        ({**NODULE, "output_dir": "/"}, "insert: there is no field 'output_dir'; there are position, lesions"),
        ({**NODULE, "findings": "/etc/order.json"}, "findings: a dictionary of ratings is needed"),
        ({"lesions": "/etc/lesions.csv"}, "lesions: a list of lesions, each an object, is needed"),
        ({"lesions": [{**NODULE, "findings": "f.json"}]}, "findings: a dictionary of ratings is needed"),
        ({"lesions": [3]}, "lesions: a list of lesions, each an object"),
        ({"lesions": [{"position": [1, 2]}], "diameter_mm": 5}, "lesions: lesion 1: x, y and z are needed"),
        ({**NODULE, "random": 2}, "give exactly one of position, lesions and random"),
        ({**NODULE, "prompt": 3, "findings": None}, "position: prompt: "),
        ({**NODULE, "guidance_scale": "@device"}, "guidance_scale: '@device' is not a number"),
        ({**NODULE, "steps": 1.5}, "steps: a whole number is needed"),
        ({**NODULE, "seeds": -1}, "seeds: a seed is a whole number"),
        ({**NODULE, "study": "host"}, "study: host: a study is one patient's"),
        ({**NODULE, "template": "none"}, "prompt template: there is no 'none'"),
    ],
)
def test_orders_that_cannot_be_filled(order: Any, message: str, inserter: BundleInserter) -> None:
    with pytest.raises(InputError, match=message):
        inserter.read(order)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"insert": NODULE, "seeds": 1}, "order: 'seeds' does not go with 'insert'"),
        ({"insert": {**NODULE, "position": [0, 0, 400]}}, "is outside the series"),
        ({"insert": {**NODULE, "steps": 0}}, "steps: "),
    ],
)
def test_nothing_half_written_stays(
    order: dict[str, Any], message: str, inserter: BundleInserter, host: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        inserter(order, host, tmp_path / "out")
    assert not list(tmp_path.rglob("*.*"))


def test_a_bundle_without_the_model_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle / "configs", tmp_path / "bundle" / "configs")
    with pytest.raises(InputError, match=r"models/inpainter/grid\.json: .*; restore it, or train an inpainting model"):
        BundleInserter(tmp_path, QUICK)
    (tmp_path / "bundle" / "configs" / "insert.json").unlink()
    with pytest.raises(InputError, match=r"has no configs/insert\.json; give a newer bundle's folder"):
        BundleInserter(tmp_path, QUICK)
