from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from nodule_plugin.data.generated import load_generated
from nodule_plugin.deploy.generator import BundleGenerator, find_bundle, read_order
from nodule_plugin.errors import InputError

SMALL = {"steps": 2, "image_size": 32, "device": "cpu"}
ROUND = {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 6}


@pytest.fixture(scope="module")
def generator(bundle: Path) -> BundleGenerator:
    return BundleGenerator(bundle, SMALL)


def test_images_are_those_that_the_bundle_writes(generator: BundleGenerator, bundle: Path, tmp_path: Path) -> None:
    order = {"findings": ROUND, "guidance_scales": [1, 3], "seeds": 4}
    config, folders = bundle / "configs" / "inference.json", {"bundle_root": str(bundle), "output_dir": str(tmp_path)}
    options = {"workflow_type": "inference", "run_id": "evaluating", "logging_file": False}
    flow = ConfigWorkflow(str(config), **options, **folders, **SMALL, **order)
    flow.initialize()
    flow.run()
    written = load_generated(tmp_path)
    requests = generator.requests(order)
    assert [request["id"] for request in requests] == [item["id"] for item in written.items]
    for request, item in zip(requests, written.items):
        hu = generator.to_hu(generator.sample(*generator.prepare(request)), request["id"])
        assert hu.dtype == np.int16
        volume: Any = nibabel.load(item["nifti"])
        np.testing.assert_array_equal(hu, np.asarray(volume.dataobj)[:, :, 0].T)
    assert written.manifest is not None
    for name, value in generator.run.items():
        assert written.manifest[name] == value, name


def test_what_an_order_leaves_out_is_as_in_the_bundle(generator: BundleGenerator) -> None:
    requests = generator.requests({"prompts": "a nodule"})
    assert [request["guidance_scale"] for request in requests] == [1.5, 3, 5]
    assert {(request["seed"], request["roi_mm"]) for request in requests} == {(0, 20.0)}


@pytest.mark.parametrize("suffix", [".txt", ".json", ".csv"])
def test_an_order_reads_no_file(suffix: str, generator: BundleGenerator, tmp_path: Path) -> None:
    secret = tmp_path / f"secret{suffix}"
    secret.write_text('["prompt"]\n')
    for prompts in (str(secret), [str(secret)]):
        requests = generator.requests({"prompts": prompts, "guidance_scales": 1})
        assert [request["prompt"] for request in requests] == [str(secret)]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"findings": {**ROUND, "margin": 7}}, r"findings\[0\]: margin: .* not 7"),
        ({"prompt": "a nodule"}, "order: there is no field 'prompt'; there are prompts, findings"),
        ({"seeds": 1}, "give exactly one of prompts, findings"),
        ({"prompts": "a nodule", "seeds": -1}, "seeds: .* not -1"),
        ({"findings": "/etc/order.json"}, "order: findings: a dictionary of ratings is needed, not '/etc/order.json'"),
        ({"prompts": ["a\x1b[2J"]}, r"prompts\[0\]: the character"),
    ],
)
def test_orders_that_cannot_be_filled(order: dict[str, Any], message: str, generator: BundleGenerator) -> None:
    with pytest.raises(InputError, match=message):
        generator.requests(order)


def test_the_bundle_may_lie_in_a_folder_of_models(bundle: Path, tmp_path: Path) -> None:
    assert find_bundle(bundle) == find_bundle(bundle.parent) == bundle
    with pytest.raises(InputError, match=r"model: .* holds no bundle; give the folder that has configs/inference.json"):
        find_bundle(tmp_path)


def test_orders_are_read_from_a_file_or_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    path.write_text(json.dumps({"findings": ROUND}))
    (tmp_path / "._order.json").touch()  # macOS's
    assert read_order(path) == read_order(tmp_path) == {"findings": ROUND}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="holds 2 JSON files"):
        read_order(tmp_path)
    with pytest.raises(InputError, match=r"other.json must hold an object"):
        read_order(tmp_path / "other.json")
    path.write_text("{")
    with pytest.raises(InputError, match=r"order.json: not JSON"):
        read_order(path)


def test_the_sdk_is_imported_by_the_operators_alone(repository: Path) -> None:
    sources = (repository / "nodule_plugin").rglob("*.py")
    users = {path.relative_to(repository).as_posix() for path in sources if "monai.deploy" in path.read_text("utf-8")}
    assert users == {"nodule_plugin/deploy/operators.py", "nodule_plugin/deploy/__main__.py"}
