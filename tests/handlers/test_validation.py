from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from tiny_sd import make_tiny_sd
from torch import nn
from training_run import Run, frozen_parts, invented_image

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.latents import LatentDataset
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.selection import HELD_OUT_LOSS
from nodule_plugin.handlers.validation import (
    COMBINED,
    TRAINING_LOSS,
    HeldOutLoss,
    SampleGrid,
    deciding_metric,
    described,
    floor_spread,
    measures,
    shard,
)
from nodule_plugin.metrics.distances import DistanceMeasure, Distances
from nodule_plugin.metrics.intervals import normal_interval
from nodule_plugin.metrics.kernel import kernel_distance, kernel_error


def test_sample_grids_carry_the_epochs_number(tmp_path: Path) -> None:
    evaluator = Engine(lambda engine, batch: {"pred": torch.zeros(4, 3, 8, 8)})
    SampleGrid(str(tmp_path), count=6).attach(evaluator)
    evaluator.run([0, 1, 2], max_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["samples_0001.png"]


class Pooled:
    """Pixels of an image, averaged in blocks of ``side``; notes how many images it was given."""

    unavailable: str | None = None

    def __init__(self, side: int) -> None:
        self.side, self.name, self.seen = side, f"blocks of {side}", 0
        self.id = self.fingerprint = self.name

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return nn.functional.avg_pool2d(images, self.side).flatten(1)


def pooled(side: int) -> DistanceMeasure:
    (column,) = Distances()(Pooled(side), "kd", suffix=f"blocks{side}")
    assert isinstance(column, DistanceMeasure)
    return column


def images_of(shift: float, count: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 4, 4, generator=generator) * 0.5 + shift


def validate(chosen_by: list[DistanceMeasure], count: int = 12, runs: int = 1) -> dict[str, float]:
    """Metrics of an evaluator that generates images brighter than the real ones."""
    real, fake, half = images_of(0.0, count), images_of(0.2, count, seed=1), count // 2
    evaluator = Engine(lambda engine, batch: {"pred": fake[batch], "label": real[batch]})
    for name, metric in deciding_metric(chosen_by).items():
        metric.attach(evaluator, name)
    for _ in range(runs):
        evaluator.run([slice(0, half), slice(half, count)])
    return dict(evaluator.state.metrics)


def test_one_measure_decides_by_its_own_value_and_interval() -> None:
    measure = pooled(2)
    metrics = validate([measure], runs=2)  # the second run must not remember the first
    rows = [nn.functional.avg_pool2d(images, 2).flatten(1) for images in (images_of(0.0), images_of(0.2, seed=1))]
    value, error = kernel_distance(*rows).mean, kernel_error(*rows)
    key = "kd_blocks2"
    low, high = normal_interval(value, error)
    assert metrics == pytest.approx({key: value, f"{key}_low": low, f"{key}_high": high})
    assert measure.extractor.seen == 12 + 2 * 12, "real images are encoded once in a run"  # type: ignore[attr-defined]


def test_several_measures_decide_in_units_of_chance() -> None:
    """A measure whose numbers are thousands of times another's counts no more than that."""
    measures = [pooled(1), pooled(4)]
    metrics = validate(measures)
    spreads = [floor_spread(measure, FeatureRows(measure.extractor(images_of(0.0)))) for measure in measures]
    values = [metrics[measure.key] / spread for measure, spread in zip(measures, spreads)]
    assert next(iter(metrics)) == COMBINED
    assert metrics[COMBINED] == pytest.approx(sum(values) / 2)
    halfwidths = [(metrics[f"{m.key}_high"] - metrics[m.key]) / spread for m, spread in zip(measures, spreads)]
    assert metrics[f"{COMBINED}_high"] - metrics[COMBINED] == pytest.approx(sum(halfwidths) / 2)


def test_the_unit_of_a_measure_is_what_chance_makes_of_it() -> None:
    measure = pooled(1)
    rows = FeatureRows(measure.extractor(images_of(0.0, 40)))
    halves = [kernel_distance(measure.extractor(images_of(0.0, 20, s)), measure.extractor(images_of(0.0, 20, s + 99)))
              for s in range(1, 60)]  # fmt: skip
    assert floor_spread(measure, rows) == pytest.approx(np.std([distance.mean for distance in halves]), rel=0.5)
    assert floor_spread(measure, rows.take(np.arange(40)[::-1])) == pytest.approx(floor_spread(measure, rows))


def test_several_measures_need_images_that_differ() -> None:
    with pytest.raises(InputError, match=r"^select_by: 2 validation images have no halves"):
        validate([pooled(1), pooled(2)], count=2)


def test_too_few_images_have_no_interval() -> None:
    assert set(validate([pooled(1)], count=2)) == {"kd_blocks1"}


def choose(select_by: Any, inception: str | None = None) -> list[str]:
    found = measures(select_by, inception, "scorer", (-1000, 400), torch.device("cpu"), [1, 2])
    return [measure.key for measure in found]


def test_measures_are_named_as_evaluations_name_them(tmp_path: Path) -> None:
    (tmp_path / "inception.pth").touch()
    assert choose("kd_imagenet") == ["kd_imagenet"]
    assert choose("kd_tiny, krd") == ["kd_tiny", "krd"]
    assert choose(["kid", "kd_imagenet"], str(tmp_path / "inception.pth")) == ["kid", "kd_imagenet"]


@pytest.mark.parametrize("select_by", ["fid", "kd_imagenet, kd_imagenet", "", [], "kid"])
def test_what_cannot_choose_is_refused(select_by: Any) -> None:
    with pytest.raises(InputError, match=r"^select_by: "):
        choose(select_by)


def test_validations_of_other_measures_are_other_validations() -> None:
    one = described([pooled(1)], range(64), 1.5, 15)
    assert one["measures"] == ["kd_blocks1"]
    assert (one["split"], one["images"]) == ("validation", 64)
    assert one != described([pooled(2)], range(64), 1.5, 15)
    assert one == json.loads(json.dumps(one))


class Constant(nn.Module):
    """Predicts the same number everywhere."""

    def forward(self, image: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        assert not self.training, "dropout has no place here"
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
    loss = make_loss(base, Constant(), 3, 5, batch_size=2)
    assert len({key.seed for keys in loss._batches() for key in keys}) == 3 * 4, "each draw has noise of its own"
    assert make_loss(base, Constant(), 5, 3).count == 3
    loss.attach(trainer)
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
