from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from warm import run_python

from nodule_plugin.diffusion.network import DiffusionUNet
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


def test_one_command_trains_all_models_and_leaves_out_what_is_done(
    repository: Path, crops: Path, tmp_path: Path
) -> None:
    done = run_python(command(repository, crops, tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
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
    again = run_python(command(repository, crops, tmp_path), tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert {part: (tmp_path / "work" / part).stat().st_mtime_ns for part in parts} == before
    assert "wrote" in again.stdout
