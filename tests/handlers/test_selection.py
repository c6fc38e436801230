from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import Compose, RandFlip, ScaleIntensity
from nodule_plugin.handlers.training import (
    EpochSeed,
    ModelSelection,
    SampleGrid,
    SetDistance,
    TrainingCheckpoint,
    WeightAverage,
    random_transforms,
)
from torch import nn

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.distribution import KernelDistanceMetric


def make_run(directory: Path, resume: bool = True) -> tuple[Engine, nn.Linear, list[float]]:
    """A trainer of random steps with everything that a checkpoint holds, and the losses it sees."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    losses: list[float] = []

    def step(engine: Engine, batch: int) -> None:
        loss = (network(torch.randn(4, 3)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    trainer = Engine(step)
    average = WeightAverage(network, 0.9)
    saved = {"network": network, "optimizer": optimizer, "ema": average}
    for handler in (EpochSeed(7), average, TrainingCheckpoint(str(directory), saved, resume=resume)):
        handler.attach(trainer)
    return trainer, network, losses


def test_a_resumed_run_continues_to_the_bit(tmp_path: Path) -> None:
    trainer, network, whole = make_run(tmp_path / "whole")
    trainer.run(range(5), max_epochs=4)
    first, _, before = make_run(tmp_path / "parts")
    first.run(range(5), max_epochs=2)
    second, resumed, after = make_run(tmp_path / "parts")
    second.run(range(5), max_epochs=4)
    assert before + after == whole
    assert torch.equal(resumed.weight, network.weight)


def test_an_interrupted_epoch_is_run_again(tmp_path: Path) -> None:
    whole_run, _, whole = make_run(tmp_path / "whole")
    whole_run.run(range(5), max_epochs=3)
    broken, _, before = make_run(tmp_path / "parts")

    def interrupt(engine: Engine) -> None:
        if engine.state.iteration == 8:
            raise KeyboardInterrupt

    broken.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
    with pytest.raises(KeyboardInterrupt):
        broken.run(range(5), max_epochs=3)
    resumed, _, after = make_run(tmp_path / "parts")
    resumed.run(range(5), max_epochs=3)
    assert before[:5] + after == whole


def test_resume_false_starts_anew(tmp_path: Path) -> None:
    trainer, _, losses = make_run(tmp_path)
    trainer.run(range(2), max_epochs=3)
    again, _, others = make_run(tmp_path, resume=False)
    again.run(range(2), max_epochs=1)
    assert others == losses[:2]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["epoch_0001.pt"]


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer, _, _ = make_run(tmp_path)
    trainer.run(range(1), max_epochs=5)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["epoch_0004.pt", "epoch_0005.pt"]


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path: Path, caplog) -> None:
    whole, _, losses = make_run(tmp_path / "whole")
    whole.run(range(2), max_epochs=4)
    first, _, _ = make_run(tmp_path / "parts")
    first.run(range(2), max_epochs=3)
    newest = tmp_path / "parts" / "epoch_0003.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    second, _, after = make_run(tmp_path / "parts")
    second.run(range(2), max_epochs=4)
    assert "epoch_0003.pt is damaged" in caplog.text
    assert after == losses[4:]


def test_where_no_checkpoint_can_be_read_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "epoch_0003.pt").write_bytes(b"damaged")
    trainer, _, _ = make_run(tmp_path)
    with pytest.raises(InputError, match=r"none can be read.*--resume false"):
        trainer.run(range(1), max_epochs=5)


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    torch.save({"network": nn.Linear(7, 1).state_dict(), "trainer": {"epoch": 1}}, tmp_path / "epoch_0001.pt")
    trainer, _, _ = make_run(tmp_path)
    with pytest.raises(InputError, match=r"epoch_0001\.pt.*another run"):
        trainer.run(range(1), max_epochs=5)


def run_validations(values: list[float], patience: int, path: Path) -> tuple[int, nn.Linear]:
    """Epochs run, and the network, where validation i gives ``values[i]`` and the weights are i + 1."""
    network = nn.Linear(1, 1)
    evaluator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        nn.init.constant_(network.weight, engine.state.epoch)
        evaluator.run([0])

    @evaluator.on(Events.COMPLETED)
    def measure(engine: Engine) -> None:
        engine.state.metrics["distance"] = values[trainer.state.epoch - 1]

    ModelSelection(network, str(path), evaluator, "distance", patience).attach(trainer)
    trainer.run([0], max_epochs=len(values))
    return trainer.state.epoch, network


def test_the_best_validation_is_kept_and_training_stops(tmp_path: Path) -> None:
    epochs, network = run_validations([3.0, 1.0, 2.0, 1.5, 0.5], patience=2, path=tmp_path / "model.pt")
    assert epochs == 4
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert kept.keys() == network.state_dict().keys()
    assert kept["weight"].item() == 2


def test_without_patience_training_goes_on(tmp_path: Path) -> None:
    epochs, _ = run_validations([1.0, 2.0, 3.0, 4.0], patience=0, path=tmp_path / "model.pt")
    assert epochs == 4


def test_negative_distances_can_improve(tmp_path: Path) -> None:
    run_validations([-0.1, -0.2, -0.15], patience=0, path=tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 2


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    network, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    ModelSelection(network, str(tmp_path / "model.pt"), None, "distance").attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: nn.init.constant_(network.weight, 9.0))
    trainer.run([0], max_epochs=2)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 9


def test_a_run_shorter_than_the_validation_interval_leaves_a_model(tmp_path: Path, caplog) -> None:
    network, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    ModelSelection(network, str(tmp_path / "model.pt"), Engine(lambda engine, batch: None), "distance").attach(trainer)
    trainer.run([0], max_epochs=1)
    assert (tmp_path / "model.pt").is_file()
    assert "No validation was run" in caplog.text


def test_selection_remembers(tmp_path: Path) -> None:
    selection = ModelSelection(nn.Linear(1, 1), str(tmp_path / "model.pt"), None, "distance")
    assert math.isinf(selection.best)
    selection.load_state_dict({"best": 0.25, "waited": 2})
    assert selection.state_dict() == {"best": 0.25, "waited": 2}


def test_the_average_follows_the_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = WeightAverage(network, 0.5)
    nn.init.constant_(network.weight, 1.0)
    average(Engine(lambda engine, batch: None))
    assert average.model.weight.item() == pytest.approx(1 - 2 / 11)  # the first step keeps (1 + 1) / (10 + 1)
    for _ in range(60):
        average(Engine(lambda engine, batch: None))
    assert average.model.weight.item() == pytest.approx(1.0)
    assert WeightAverage(network, None).model is network


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="ema_decay"):
        WeightAverage(nn.Linear(1, 1), decay)


def test_sample_grids_carry_the_epochs_number(tmp_path: Path) -> None:
    evaluator = Engine(lambda engine, batch: {"pred": torch.zeros(4, 3, 8, 8)})
    SampleGrid(str(tmp_path), count=6).attach(evaluator)
    evaluator.run([0, 1, 2], max_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["samples_0001.png"]


def test_set_distance_compares_predictions_with_labels() -> None:
    torch.manual_seed(0)
    real, fake = torch.rand(6, 3, 4, 4), torch.rand(6, 3, 4, 4)
    evaluator = Engine(lambda engine, batch: {"pred": fake[batch], "label": real[batch]})
    metric = KernelDistanceMetric(_flatten)
    SetDistance(metric).attach(evaluator, "distance")
    for _ in range(2):  # the second run must not remember the first
        evaluator.run([slice(0, 3), slice(3, 6)])
    expected = KernelDistanceMetric(_flatten)
    expected.update(real, real=True)
    expected.update(fake, real=False)
    assert evaluator.state.metrics["distance"] == pytest.approx(expected.compute().mean)


def _flatten(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def test_random_transforms_are_found() -> None:
    flip = RandFlip(prob=0.5)
    assert random_transforms(Compose([ScaleIntensity(), flip])) == [flip]
