from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from tiny_sd import make_tiny_sd
from torch import nn
from training_run import Run, frozen_parts, invented_image

from nodule_plugin.data.latents import LatentDataset
from nodule_plugin.handlers.selection import HELD_OUT_LOSS
from nodule_plugin.handlers.validation import TRAINING_LOSS, HeldOutLoss, SampleGrid, SetDistance, shard
from nodule_plugin.metrics.distribution import FrechetDistanceMetric, KernelDistance, KernelDistanceMetric


def test_sample_grids_carry_the_epochs_number(tmp_path: Path) -> None:
    evaluator = Engine(lambda engine, batch: {"pred": torch.zeros(4, 3, 8, 8)})
    SampleGrid(str(tmp_path), count=6).attach(evaluator)
    evaluator.run([0, 1, 2], max_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["samples_0001.png"]


def _flatten(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def measure(kind: type, count: int = 12) -> dict[str, float]:
    torch.manual_seed(0)
    real, fake = torch.rand(count, 3, 4, 4), torch.rand(count, 3, 4, 4) + 0.2
    half = count // 2
    evaluator = Engine(lambda engine, batch: {"pred": fake[batch], "label": real[batch]})
    SetDistance(kind(_flatten)).attach(evaluator, "distance")
    for _ in range(2):  # the second run must not remember the first
        evaluator.run([slice(0, half), slice(half, count)])
    expected = kind(_flatten)
    expected.update(real, real=True)
    expected.update(fake, real=False)
    value = expected.compute()
    number = value.mean if isinstance(value, KernelDistance) else float(value)
    assert evaluator.state.metrics["distance"] == pytest.approx(number, rel=1e-5)
    return evaluator.state.metrics


def _value(metrics: dict[str, float], *names: str) -> list[float]:
    return [metrics[f"distance{name}"] for name in names]


def test_a_kernel_distance_has_an_interval() -> None:
    metrics = measure(KernelDistanceMetric)
    low, middle, high = _value(metrics, "_low", "", "_high")
    assert low < middle < high
    assert middle - low == pytest.approx(high - middle)


def test_too_few_images_have_no_interval() -> None:
    assert set(measure(KernelDistanceMetric, count=2)) == {"distance"}


class Constant(nn.Module):
    """Predicts the same number everywhere."""

    def forward(self, image: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(image)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd"))


def make_loss(base: Path, network: nn.Module, held_out: int, training: int, **settings: int) -> HeldOutLoss:
    vae, conditioner, scheduler = frozen_parts(str(base))

    def dataset(first: int, count: int) -> LatentDataset:
        return LatentDataset([{"id": str(first + n), "prompt": "a"} for n in range(count)], invented_image)

    return HeldOutLoss(network, dataset(100, held_out), dataset(0, training), vae, conditioner, scheduler, **settings)


def test_both_sets_meet_the_same_noise_at_every_validation(base: Path) -> None:
    """A network that predicts zero has the noise's own size as its loss, whatever the images."""
    trainer = Engine(lambda engine, batch: None)
    trainer.state.device = torch.device("cpu")
    make_loss(base, Constant(), 3, 5, batch_size=2).attach(trainer)
    trainer.run([0], max_epochs=1)
    first = dict(trainer.state.metrics)
    assert first[HELD_OUT_LOSS] == pytest.approx(first[TRAINING_LOSS], rel=1e-6)
    assert first[HELD_OUT_LOSS] == pytest.approx(1, abs=0.1)
    trainer.run([0], max_epochs=2)
    assert trainer.state.metrics == first


def test_the_loss_does_not_depend_on_the_batch_size(base: Path) -> None:
    network = Run(base).network
    values = []
    for size in (1, 4, 16):
        trainer = Engine(lambda engine, batch: None)
        trainer.state.device = torch.device("cpu")
        make_loss(base, network, 3, 3, batch_size=size)(trainer)
        values.append(trainer.state.metrics[HELD_OUT_LOSS])
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_learning_by_heart_shows_as_a_gap(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = Run(base, epochs=30, schedule="constant", learning_rate=3e-3)
    loss = make_loss(base, run.network, 5, 5)
    loss.interval = 30
    loss.attach(run.trainer)
    run.train()
    found = run.trainer.state.metrics
    assert found[HELD_OUT_LOSS] > found[TRAINING_LOSS]
    assert f"gap {found[HELD_OUT_LOSS] - found[TRAINING_LOSS]:.5f}" in caplog.text


def test_other_epochs_have_no_loss(base: Path) -> None:
    trainer = Engine(lambda engine, batch: None)
    trainer.state.device = torch.device("cpu")
    make_loss(base, Constant(), 2, 2, interval=2).attach(trainer)
    for epochs, known in ((1, False), (2, True), (3, False)):
        trainer.run([0], max_epochs=epochs)
        assert (HELD_OUT_LOSS in trainer.state.metrics) == known


def test_one_process_keeps_everything() -> None:
    assert shard([1, 2, 3]) == [1, 2, 3]


def test_a_distance_without_deviation(base: Path) -> None:
    assert set(measure(FrechetDistanceMetric)) == {"distance"}
