"""Training runs of an inpainting model, as the bundle's users start them."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nodule_crops import write_balls
from tiny_inpainter import GRID, make_tiny_inpainter
from warm import run_python

from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.sources import Asked

ONE_SLICE = Grid((2.0, 1.0, 1.0), (1, 16, 16), (-1000, 400))


@pytest.mark.parametrize(
    ("slices", "overlays"), [(4, ["train_insertion.json"]), (1, ["train_insertion.json", "sd15_inpainting.json"])]
)
def test_a_run_trains_a_model_that_paints(repository: Path, tmp_path: Path, slices: int, overlays: list[str]) -> None:
    bundle, output, grid = repository / "bundle", tmp_path / "out", GRID if slices > 1 else ONE_SLICE
    base = make_tiny_inpainter(tmp_path / "base", grid, slices)
    datalist = write_balls(tmp_path / "balls", [3.0, 4.0] * 5, [0.0, -500.0] * 5, (7, 2, 1))
    settings = {
        "datalist": datalist,
        "base_model": base,
        "output_dir": output,
        "grid_shape": list(grid.shape),
        "grid_spacing_mm": list(grid.spacing_mm),
        "epochs": 2,
        "batch_size": 4,
        "val_interval": 1,
        "lr_warmup_steps": 0,
        "num_workers": 0 if slices > 1 else 1,
        "precision": "float32",
    }
    files = [str(bundle / "configs" / name) for name in ["train.json", *overlays]]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    command += ["--bundle_root", str(bundle)]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = run_python(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    with (output / "curves.csv").open() as file:
        losses = [float(row["denoising_loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
    weights = output / "models" / "model.pt"
    inpainter = NoduleInpainter.from_folder(base, weights=weights, depth=4)
    assert inpainter.grid == replace(grid, shape=(4, 16, 16))
    untrained = NoduleInpainter.from_folder(base).model["hash"]
    assert inpainter.model["hash"] != untrained
    host, mask = torch.full((4, 16, 16), -850.0), torch.zeros(4, 16, 16)
    mask[1:3, 6:10, 6:10] = 1
    painted = inpainter(host, mask, Asked("The nodule is round in shape.", 4.0, guidance_scale=1.0, steps=2, seed=0))
    assert torch.equal(painted != host, painted != -850)
    assert (painted[mask > 0] != -850).all()
