"""What the app for MONAI Label does, without MONAI Label; with it, see test_label_server.py."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from tiny_clip import make_tiny_clip
from tiny_sd import make_tiny_sd, make_tuned_weights

from nodule_plugin.data.datalist import build_datalist, write_datalist
from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.sources import load_nodules
from nodule_plugin.deploy.label.client_settings import default_image_settings, image_settings, torch_device
from nodule_plugin.deploy.label.configs import BundleFiles, bundle_files
from nodule_plugin.deploy.label.generation import ImageService
from nodule_plugin.deploy.label.runs import TrainingRuns, default_training_settings, training_settings
from nodule_plugin.errors import InputError

SETTINGS = {"prompt": "a round nodule", "guidance_scale": 2, "seed": 3, "steps": 2}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleFiles:
    """The bundle's configurations around very small models of the real structure."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "configs").symlink_to(repository / "bundle" / "configs")
    base = make_tiny_sd(root / "models" / "tiny")
    make_tiny_clip(root / "models" / "tiny_scorer")
    make_tuned_weights(base, root / "models" / "model.pt", seed=1)
    # Their record, which every image's header repeats.
    (root / "models" / "model.json").symlink_to(repository / "bundle" / "models" / "model.json")
    return BundleFiles(root)


@pytest.fixture(scope="module")
def service(files: BundleFiles) -> ImageService:
    return ImageService(files)


def take(service: ImageService, weights: str | None = None, **changes: Any) -> tuple[bytes, dict[str, Any]]:
    """The bytes and the description of an image; its file is removed, as MONAI Label does."""
    image = service(image_settings({**SETTINGS, **changes}), weights, CPU)
    content = image.nifti.read_bytes()
    image.nifti.unlink()
    return content, image.description


def test_the_image_is_the_bundles_own(files: BundleFiles, service: ImageService, tmp_path: Path) -> None:
    """Byte for byte what ``monai.bundle run`` writes, for the first request and for those that find the networks."""
    flow = ConfigWorkflow(
        files.config_files("inference.json"), workflow_type="inference", run_id="evaluating", logging_file=False,
        bundle_root=str(files.root), device="cpu", prompts=[SETTINGS["prompt"]], guidance_scales=2, seeds=3, steps=2,
        output_dir=str(tmp_path / "made"),
    )  # fmt: skip
    flow.initialize()
    flow.run()
    expected = Path(load_generated(tmp_path / "made").items[0]["nifti"]).read_bytes()
    assert [take(service)[0] for _ in range(2)] == [expected] * 2
    assert take(service, seed=4)[0] != expected
    assert take(service)[0] == expected


def test_the_description_says_what_made_it(files: BundleFiles, service: ImageService) -> None:
    description = take(service)[1]
    assert description["synthetic"] is True
    assert "not for diagnosis" in description["notice"]
    digest = hashlib.sha256((files.root / "models" / "model.pt").read_bytes()).hexdigest()
    assert description["model"]["weights_sha256"] == digest
    assert description["num_inference_steps"] == 2
    image = description["image"]
    assert {name: image[name] for name in ("prompt", "guidance_scale", "seed")} == {
        "prompt": "a round nodule",
        "guidance_scale": 2,
        "seed": 3,
    }


@pytest.mark.parametrize("prompt", ["$1 / 0", "@device", "%imports", "/etc/passwd.txt", "prompts.json"])
def test_a_prompt_is_a_text_and_nothing_else(service: ImageService, prompt: str) -> None:
    """In a configuration the first three would be evaluated; the inference run reads prompts from the last two."""
    assert take(service, prompt=prompt)[1]["image"]["prompt"] == prompt


def test_other_weights_are_used_and_new_ones_noticed(files: BundleFiles, service: ImageService, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    hashes, images = [], []
    for seed in (2, 3):
        make_tuned_weights(files.root / "models" / "tiny", path, seed)
        os.utime(path, (seed, seed))
        image, description = take(service, str(path))
        assert description["model"]["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        hashes.append(description["model"]["weights_sha256"])
        images.append(image)
    for weights in (None, "base"):
        image, description = take(service, weights)
        hashes.append(description["model"]["weights_sha256"])
        images.append(image)
    assert len(set(hashes)) == len(set(images)) == 4


def test_an_error_leaves_the_next_request_alone(service: ImageService) -> None:
    before = take(service)[0]
    with pytest.raises(InputError, match=r"prompt: \d+ tokens"):
        take(service, prompt="nodule " * 99)
    with pytest.raises(InputError, match=r"weights: there is no file none\.pt"):
        take(service, "none.pt")
    assert take(service)[0] == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": " "}, "prompt: a text that is not empty is needed, not ' '"),
        ({"prompt": None}, "prompt: a text"),
        ({"prompt": ["a", "b"]}, "prompt: a text"),
        ({"prompt": "a\nb"}, "prompt: one line makes one image"),
        ({"guidance_scale": -1}, "guidance_scale: a number of 0 or above is needed, not -1"),
        ({"guidance_scale": "1, 3"}, "guidance_scale: '1, 3' is not a number"),
        ({"guidance_scale": "nan"}, "guidance_scale: a finite number is needed, not nan"),
        ({"guidance_scale": 10**400}, "guidance_scale: a number below"),
        ({"guidance_scale": True}, "guidance_scale: True is not a number"),
        ({"guidance_scale": [3]}, r"guidance_scale: \[3\] is not a number"),
        ({"seed": -1}, "seed: a whole number of 0 or above is needed, not -1"),
        ({"seed": 1.5}, "seed: a whole number"),
        ({"seed": 2**63}, "seed: a number below"),
        ({"seed": True}, "seed: True is not a number"),
        ({"steps": 0}, "steps: a whole number from 1 to 1000 is needed, not 0"),
        ({"steps": 10**9}, "steps: a whole number from 1 to 1000"),
        ({"steps": "²"}, "steps: '²' is not a number"),
    ],
)
def test_what_no_image_can_be_made_from(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_settings({**SETTINGS, **given})


def test_numbers_may_come_as_text() -> None:
    settings = image_settings({"prompt": " a nodule ", "guidance_scale": "2.5", "seed": "4", "steps": 8.0})
    assert vars(settings) == {"prompt": "a nodule", "guidance_scale": 2.5, "seed": 4, "steps": 8}


def test_the_defaults_are_the_first_of_the_displayed_ones(files: BundleFiles) -> None:
    displayed = files.read("inference.json")["displayable_configs"]
    defaults = default_image_settings(displayed)
    assert list(defaults) == list(displayed) == ["prompt", "guidance_scale", "seed", "steps"]
    assert displayed["prompt"].splitlines()[0] == defaults["prompt"]
    assert str(displayed["guidance_scale"]).startswith(f"{defaults['guidance_scale']:g}")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "$1", None, 3.5, [0]])
def test_a_device_that_is_not_there(name: Any) -> None:
    with pytest.raises(InputError, match="device: "):
        torch_device(name)


def test_what_the_server_is_started_with(repository: Path, tmp_path: Path) -> None:
    bundle = str(repository / "bundle")
    files = bundle_files({"bundle": bundle, "overlays": "sd15.json, low_memory.json", "base_model": "folder"})
    assert [Path(file).name for file in files.config_files("train.json")] == [
        "train.json",
        "sd15.json",
        "low_memory.json",
    ]
    config = files.read("train.json")
    assert (config["bundle_root"], config["base_model"], config["batch_size"]) == (bundle, "folder", 1)
    for conf in ({}, {"bundle": str(tmp_path)}, {"bundle": bundle, "overlays": "none.json"}):
        with pytest.raises(InputError, match="bundle: "):
            bundle_files(conf)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    nodules = load_nodules("phantom", phantom_dir=folder / "phantom", phantom_nodules=16)
    return write_datalist(build_datalist(nodules), folder / "datalist.json")


def test_a_run_trains_the_bundles_way_and_its_model_generates(
    files: BundleFiles, service: ImageService, datalist: Path, tmp_path: Path
) -> None:
    runs = TrainingRuns(tmp_path / "model", files)
    assert (runs.models(), runs.results()) == ({}, {})
    settings = training_settings({"run": "first", "max_epochs": 1, "batch_size": "4", "learning_rate": 1e-3})
    result = runs.train(datalist, settings, CPU)
    assert runs.results() == {"first": result}
    model = runs.models()["first"]
    assert result["model"] == str(model)
    assert result["last"]["epoch"] == "1"
    assert float(result["last"]["learning_rate"]) == 1e-3
    description = take(service, str(model))[1]
    assert description["model"]["weights_sha256"] == result["weights_sha256"]
    assert result["weights_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()


def test_without_a_data_list_nothing_is_begun(files: BundleFiles, tmp_path: Path) -> None:
    runs = TrainingRuns(tmp_path / "model", files)
    with pytest.raises(InputError, match=rf"datalist: there is no file {tmp_path}/datalist\.json; write it"):
        runs.train(tmp_path / "datalist.json", training_settings({}), CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run": "../elsewhere"}, "run: a name of letters"),
        ({"run": "$1"}, "run: a name"),
        ({"run": 3}, "run: a name"),
        ({"max_epochs": 0}, "max_epochs: a whole number from 1"),
        ({"batch_size": "many"}, "batch_size: 'many' is not a number"),
        ({"learning_rate": 0}, "learning_rate: a number between 0 and 1"),
        ({"learning_rate": "@device"}, "learning_rate: '@device' is not a number"),
        ({"seed": -1}, "seed: a whole number from 0"),
    ],
)
def test_what_no_run_can_be_made_from(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        training_settings(given)


def test_a_run_without_a_name_gets_one_and_keeps_the_configurations_settings(files: BundleFiles) -> None:
    defaults = default_training_settings(files.read("train.json"))
    assert set(defaults) == {"max_epochs", "batch_size", "learning_rate", "seed"}
    settings = training_settings({"run": "", **defaults})
    assert settings.run.startswith(time.strftime("%Y", time.gmtime()))
    assert settings.overrides["epochs"] == defaults["max_epochs"]
