from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.phantom import write_phantom_crops

QUICK = {
    "patches": 40,
    "autoencoder-steps": 2,
    "text-steps": 2,
    "scorer-steps": 2,
    "threads": 1,
}
OVERLAY = {"epochs": 1, "lr_warmup_steps": 0, "val_interval": 1, "val_images": 4, "val_steps": 2}


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_crops(tmp_path_factory.mktemp("crops") / "phantoms", nodules=60)


def command(repository: Path, crops: Path, folder: Path) -> list[str]:
    script = repository / "scripts" / "train_small_model.py"
    overlay = folder / "overlay.json"
    overlay.write_text(json.dumps(OVERLAY))
    settings = {"crops": crops, "work": folder / "work", "output": folder / "models", "overlay": overlay, **QUICK}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(script), *options]


def test_stages_of_other_settings_are_not_taken(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    check_settings = importlib.import_module("train_small_model").check_settings
    given = {
        "patches": 40,
        "autoencoder_steps": 2,
        "text_steps": 2,
        "scorer_steps": 2,
        "precision": "float32",
        "seed": 0,
    }
    for options in (given, given | {"threads": 2}):
        check_settings(Namespace(work=tmp_path, crops=tmp_path, **options))
    with pytest.raises(InputError, match="made with autoencoder_steps 2, not 3; seed 0, not 1; give these"):
        check_settings(Namespace(work=tmp_path, crops=tmp_path, **given | {"autoencoder_steps": 3, "seed": 1}))


def test_one_command_trains_all_models_and_leaves_out_what_is_done(
    repository: Path, crops: Path, tmp_path: Path
) -> None:
    subprocess.run(command(repository, crops, tmp_path), check=True)
    models = tmp_path / "models"
    assert {path.name for path in models.iterdir()} == {"tiny", "tiny_scorer", "model.pt", "training_patients.json"}
    network = DiffusionUNet.from_base(str(models / "tiny"))
    weights = torch.load(models / "model.pt", weights_only=True)
    assert all(torch.allclose(weights[name], value, atol=1e-3) for name, value in network.state_dict().items())
    patients = json.loads((models / "training_patients.json").read_text())
    assert patients["training"]
    assert not set(patients["training"]) & set(patients["validation"])
    parts = ("vae", "text_encoder", "untrained", "tiny_scorer", "training/models")
    before = {part: (tmp_path / "work" / part).stat().st_mtime_ns for part in parts}
    again = subprocess.run(command(repository, crops, tmp_path), check=True, capture_output=True, text=True)
    assert {part: (tmp_path / "work" / part).stat().st_mtime_ns for part in parts} == before
    assert "wrote" in again.stdout
