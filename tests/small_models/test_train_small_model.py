from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import train_small_model
from small_models import few_steps
from small_models.inpainting import GRID
from warm import run_python

from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.lidc.phantom import write_phantom_crops

QUICK = {
    "patches": 40,
    "autoencoder-steps": 2,
    "text-steps": 2,
    "scorer-steps": 2,
    "trajectories": 4,
    "few-steps-steps": 2,
    "threads": 1,
}
OVERLAY = {"epochs": 1, "lr_warmup_steps": 0, "val_interval": 1, "val_images": 4, "val_steps": 1}
OVERLAY |= {"val_guidance_scales": "1, 3"}


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_crops(tmp_path_factory.mktemp("crops") / "phantoms", nodules=40)


def run_script(crops: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script in this process, the bundle's commands that it gives in warm ones."""
    overlay = folder / "overlay.json"
    overlay.write_text(json.dumps(OVERLAY))
    settings = {"crops": crops, "work": folder / "work", "output": folder / "models", "overlay": overlay, **QUICK}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_small_model.py", *options])
    monkeypatch.setattr(
        train_small_model, "subprocess", SimpleNamespace(run=lambda command: run_python(command, folder))
    )
    monkeypatch.setattr(few_steps, "CHUNK", 4)
    train_small_model.main()


def test_stages_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    given = {
        "patches": 40,
        "autoencoder_steps": 2,
        "text_steps": 2,
        "scorer_steps": 2,
        "trajectories": 4,
        "few_steps_steps": 2,
        "precision": "float32",
        "seed": 0,
    }
    for options in (given, given | {"threads": 2}):
        train_small_model.check_settings(Namespace(work=tmp_path, crops=tmp_path, **options))
    with pytest.raises(InputError, match="made with autoencoder_steps 2, not 3; seed 0, not 1; give these"):
        train_small_model.check_settings(
            Namespace(work=tmp_path, crops=tmp_path, **given | {"autoencoder_steps": 3, "seed": 1})
        )


def test_one_command_trains_all_models_and_leaves_out_what_is_done(
    crops: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_script(crops, tmp_path, monkeypatch)
    models = tmp_path / "models"
    assert {path.name for path in models.iterdir()} == {
        *("tiny", "tiny_scorer", "few_steps", "inpainter", "model.pt", "model.json", "training_patients.json")
    }
    network = DiffusionUNet.from_base(str(models / "tiny"))
    weights = torch.load(models / "model.pt", weights_only=True)
    assert all(torch.equal(weights[name], value.half()) for name, value in network.state_dict().items())
    assert NoduleInpainter.from_folder(models / "inpainter").grid == GRID
    patients = json.loads((models / "training_patients.json").read_text())
    assert patients["training"]
    assert not set(patients["training"]) & set(patients["validation"])
    parts = ("vae", "text_encoder", "untrained", "tiny_scorer", "training/models", "few_steps", "inpainter")
    before = {part: (tmp_path / "work" / part).stat().st_mtime_ns for part in parts}
    run_script(crops, tmp_path, monkeypatch)
    assert {part: (tmp_path / "work" / part).stat().st_mtime_ns for part in parts} == before
    assert capsys.readouterr().out.count("wrote") == 2
