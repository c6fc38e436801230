"""Insertion by the app for MONAI Label, without MONAI Label; with it, see test_label_server.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ct_hosts import FINDINGS

from nodule_plugin.deploy.inserter import BundleInserter
from nodule_plugin.deploy.label.configs import BundleFiles
from nodule_plugin.deploy.label.insertion import InsertionService, series_folder
from nodule_plugin.errors import InputError

NODULE = {"position": "30,12,2", "diameter_mm": "5", "findings": FINDINGS, "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def service(bundle: Path) -> InsertionService:
    return InsertionService(BundleFiles(bundle, ("sd15.json",), "other/model"))


def take(service: InsertionService, host: Path, **changes: Any) -> tuple[bytes, dict[str, Any]]:
    """The bytes and the description of a result; its file is removed, as MONAI Label does."""
    made = service({"model": "insert_nodule", "label_tag": "x", **NODULE, **changes}, host, "cpu")
    content = made.nifti.read_bytes()
    made.nifti.unlink()
    return content, json.loads(json.dumps(made.description))


def test_volume_and_mask_are_those_of_the_command(
    service: InsertionService, bundle: Path, host: Path, tmp_path: Path
) -> None:
    reason = "the command needs highdicom, which is not for MONAI Label's pydicom"
    pytest.importorskip("highdicom", reason=reason, exc_type=ImportError)
    order = {name: value for name, value in NODULE.items() if name != "seed"} | {"seeds": 3}
    made = BundleInserter(bundle, {"device": "cpu"})({"insert": order}, host, tmp_path)
    manifest = json.loads((made / "manifest.json").read_text())
    for result in ("volume", "mask"):
        content, description = take(service, host, result=result)
        assert content == (made / "seed3" / f"{result}.nii.gz").read_bytes()
        assert description["result"] == result
        for name in ("synthetic", "notice", "model", "num_inference_steps", "window_hu", "software", "host"):
            assert description[name] == manifest[name]
        for name in ("changed_voxels", "nodules"):
            assert description[name] == manifest["series"][0][name]


def test_a_prompt_is_a_text_and_nothing_else(service: InsertionService, host: Path) -> None:
    for prompt in ("$1 / 0", "@device"):
        nodule = take(service, host, prompt=prompt, findings="")[1]["nodules"][0]
        assert (nodule["prompt"], nodule["findings"]) == (prompt, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"position": ""}, "give exactly one of position, lesions and random, not none"),
        ({"position": "@diameter_mm"}, "position: '@diameter_mm' is not a number"),
        ({"position": "0,0,400"}, "is outside the series"),
        ({"diameter_mm": None}, "diameter_mm is missing"),
        ({"findings": "/etc/findings.json"}, "findings: a dictionary of ratings is needed"),
        ({"lesions": "/etc/lesions.csv", "position": None}, "lesions: a list of lesions"),
        ({"steps": 10**6}, "steps: a whole number from 1 to 1000"),
        ({"guidance_scale": -1}, "guidance_scale: a number of 0 or above"),
        ({"seed": "one"}, "seeds: 'one' is not a number"),
        ({"result": "both"}, "result: choose one of volume, mask, not 'both'"),
    ],
)
def test_what_cannot_be_inserted(service: InsertionService, host: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        take(service, host, **given)


def test_a_client_names_folders_of_the_studies_and_no_others(host: Path, tmp_path: Path) -> None:
    roots = [host.parent, tmp_path / "sessions"]
    (tmp_path / "sessions" / "one").mkdir(parents=True)
    (host.parent / "link").symlink_to(tmp_path, target_is_directory=True)
    assert series_folder(host.name, roots) == series_folder(str(host), roots) == host
    assert series_folder(str(tmp_path / "sessions" / "one"), roots) == tmp_path / "sessions" / "one"
    for image in ("/etc", "../", str(tmp_path), "link", "case.nii.gz", "a\0b", "x" * 999, None, 3):
        with pytest.raises(InputError, match="image: a CT series as DICOM is needed, not "):
            series_folder(image, roots)
    (host.parent / "link").unlink()


def test_a_bundle_without_the_model_says_what_to_do(bundle: Path, host: Path, tmp_path: Path) -> None:
    service = InsertionService(BundleFiles(bundle), str(tmp_path))
    with pytest.raises(InputError, match=r"grid\.json: .*; restore it, or train an inpainting model"):
        take(service, host)
