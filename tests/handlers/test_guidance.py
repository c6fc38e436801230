from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from torch import nn

from nodule_plugin.data.transforms import nodule_transform
from nodule_plugin.diffusion.provenance import DISPLAYED_SCALES, guidance_scales, read_record, write_record
from nodule_plugin.handlers.guidance import GuidanceChoice
from nodule_plugin.handlers.selection import ModelSelection
from nodule_plugin.metrics.distances import DistanceMeasure, Distances
from nodule_plugin.metrics.radiomics import RadiomicFeatures
from nodule_plugin.weights import save_tensors

HOW = {"split": "validation", "images": 8, "measures": ["krd"], "guidance_scale": 1.5, "steps": 3}
SCALES = "1, 2, 4"


class Contrast(Inferer):
    """Images whose contrast is the network's weight times the guidance scale."""

    def __call__(self, noise: torch.Tensor, network: nn.Module, guidance_scale: Any, **conditions: Any) -> torch.Tensor:
        return (noise * network.weight.item() * guidance_scale).clamp(-1, 1)


def real_images() -> torch.Tensor:
    return torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).expand(-1, 3, -1, -1)


def choose(folder: Path, scales: Any, possible: bool = True) -> nn.Module:
    """Choose where the real images are the noise at half its size, and the best weights are 0.25; returns the last."""
    network, real = nn.Linear(1, 1), real_images()
    nn.init.constant_(network.weight, 9.0)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[slice(0, 4), slice(4, 8)],
        network=network,
        prepare_batch=lambda batch, device, non_blocking: (real[batch], real[batch] / 2, (), {"guidance_scale": 7.0}),
        inferer=Contrast(),
    )
    path = folder / "models" / "model.pt"
    selection = ModelSelection(network, str(path), evaluator if possible else None, measured_by=HOW)
    save_tensors({"weight": torch.tensor([[0.25]]), "bias": torch.zeros(1)}, path)
    write_record(path, nodule_transform(16, (-1000, 400), "cubic"))
    (column,) = Distances()(RadiomicFeatures(), "krd")
    assert isinstance(column, DistanceMeasure)
    trainer = Engine(lambda engine, batch: None)
    GuidanceChoice(selection, [column], scales, str(folder)).attach(trainer)
    trainer.run([0], max_epochs=1)
    return network


def test_the_chosen_weights_get_the_scale_of_the_least_distance(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    network = choose(tmp_path, SCALES)
    assert network.weight.item() == 9, "the network of the training stays as it is"
    path = tmp_path / "models" / "model.pt"
    record = read_record(path)
    how = {name: value for name, value in HOW.items() if name != "guidance_scale"}
    assert record["guidance"] == {"scale": 2.0, "scales": [1.0, 2.0, 4.0], **how}
    assert record["image_size"] == [16, 16]
    assert guidance_scales(path, DISPLAYED_SCALES) == 2.0
    assert guidance_scales(path, "7") == "7"
    curve = json.loads((tmp_path / "guidance.json").read_text())
    assert [point["guidance_scale"] for point in curve["curve"]] == [1, 2, 4]
    choose(tmp_path / "alone", "4")
    alone = json.loads((tmp_path / "alone" / "guidance.json").read_text())
    assert alone["curve"] == curve["curve"][2:], "no scale is judged by images of those before it"
    assert all(point["krd_low"] < point["krd"] < point["krd_high"] for point in curve["curve"])
    assert (tmp_path / "guidance.png").read_bytes().startswith(b"\x89PNG")
    assert "Guidance scale 2 is best of 1, 2, 4 by Kernel radiomics distance" in caplog.text
    assert "on 8 images of the validation split" in caplog.text


@pytest.mark.parametrize(("scales", "possible"), [(None, True), (SCALES, False)])
def test_nothing_is_chosen_where_nothing_is_to_be_chosen_from(tmp_path: Path, scales: Any, possible: bool) -> None:
    choose(tmp_path, scales, possible)
    assert "guidance" not in read_record(tmp_path / "models" / "model.pt")
    assert not (tmp_path / "guidance.json").exists()
    assert guidance_scales(tmp_path / "models" / "model.pt", DISPLAYED_SCALES) == DISPLAYED_SCALES
