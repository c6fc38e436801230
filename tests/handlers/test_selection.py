from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from nodule_plugin.data.transforms import chain_id, nodule_transform
from nodule_plugin.diffusion.provenance import chosen_on, read_record, weights_chain
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.selection import HELD_OUT_LOSS, ModelSelection


def run_validations(
    values: list[float], path: Path, losses: list[float] | None = None, every: int = 1, **settings: Any
) -> tuple[ModelSelection, Engine]:
    """The selection and the trainer, where epoch i + 1's validation gives ``values[i]`` and the weights are i + 1."""
    network = nn.Linear(1, 1)
    evaluator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = "distance"

    @trainer.on(Events.EPOCH_COMPLETED(every=every))
    def validate(engine: Engine) -> None:
        nn.init.constant_(network.weight, engine.state.epoch)
        engine.state.metrics[HELD_OUT_LOSS] = (losses or [1.0] * len(values))[engine.state.epoch - 1]
        evaluator.state.epoch, evaluator.state.epoch_length = engine.state.epoch - 1, 1
        evaluator.run([0], max_epochs=engine.state.epoch)

    @evaluator.on(Events.COMPLETED)
    def measure(engine: Engine) -> None:
        engine.state.metrics["distance"] = values[trainer.state.epoch - 1]

    selection = ModelSelection(network, str(path), evaluator, **settings)
    selection.attach(trainer)
    trainer.run([0], max_epochs=len(values))
    return selection, trainer


def test_the_best_validation_is_kept_and_training_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    selection, trainer = run_validations([3.0, 1.0, 2.0, 1.5, 0.5], tmp_path / "model.pt", patience=2)
    assert trainer.state.epoch == 4
    assert selection.reason == "distance has not fallen below 1.00000 for 2 validations"
    assert f"Training stops after epoch 4: {selection.reason}." in caplog.text
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert kept.keys() == selection.network.state_dict().keys()
    assert kept["weight"].item() == 2


def test_the_record_beside_the_weights_names_the_chain(tmp_path: Path) -> None:
    run_validations([1.0], tmp_path / "model.pt", preprocessing=nodule_transform(64, (-1000, 400), "linear"))
    assert weights_chain(tmp_path / "model.pt") == chain_id("linear")
    record = json.loads((tmp_path / "model.json").read_text())
    assert (record["image_size"], record["window_hu"]) == ([64, 64], [-1000, 400])
    run_validations([1.0], tmp_path / "other.pt")
    assert weights_chain(tmp_path / "other.pt") is None
    assert weights_chain("base") is None
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json is no record of a training"):
        weights_chain(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": "64"}, r"model\.json: image_size: a whole number of 1 or above is needed, not '6'"),
        ({"window_hu": [400, -1000]}, r"model\.json: window_hu: two rising numbers are needed"),
        ({"image_size": 64}, r"model\.json is no record of a training \(TypeError"),
    ],
)
def test_an_edited_record_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"chain": "roi-cubic-2", **change}))
    with pytest.raises(InputError, match=message):
        read_record(tmp_path / "model.pt")


def test_without_patience_training_goes_on(tmp_path: Path) -> None:
    selection, trainer = run_validations([1.0, 2.0, 3.0, 4.0], tmp_path / "model.pt")
    assert trainer.state.epoch == 4
    assert selection.reason is None


def test_patience_counts_validations_without_improvement(tmp_path: Path) -> None:
    selection, trainer = run_validations([3.0, 3.5, 2.0, 2.5, 1.0], tmp_path / "model.pt", patience=2)
    assert (trainer.state.epoch, selection.reason) == (5, None), "those before an improvement no longer count"
    _, trainer = run_validations([9.0, 1.0, 9.0, 2.0, 9.0, 3.0, 9.0], tmp_path / "model.pt", every=2, patience=2)
    assert trainer.state.epoch == 6, "epochs without a validation do not count"


@pytest.mark.parametrize(
    ("values", "kept"), [([2.0, 1.85], 1), ([2.0, 1.75], 2), ([-2.0, -2.15], 1), ([-2.0, -2.25], 2)]
)
def test_an_improvement_is_a_fraction_of_the_best_value(values: list[float], kept: int, tmp_path: Path) -> None:
    run_validations(values, tmp_path / "model.pt", min_improvement=0.1)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == kept


def test_a_rising_held_out_loss_stops_training(tmp_path: Path) -> None:
    losses = [0.5, 0.4, 0.41, 0.39, 0.42, 0.43, 0.3]
    distances = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    selection, trainer = run_validations(distances, tmp_path / "model.pt", losses, overfit_patience=2)
    assert trainer.state.epoch == 6
    assert selection.reason == "overfitting: no held-out loss below 0.39000 for 2 validations"
    _, trainer = run_validations(distances, tmp_path / "model.pt", [0.5] * 7, overfit_patience=2)
    assert trainer.state.epoch == 3, "one that stays has not fallen"


def test_negative_distances_can_improve(tmp_path: Path) -> None:
    run_validations([-0.1, -0.2, -0.15], tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 2


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    network, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    ModelSelection(network, str(tmp_path / "model.pt"), None).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: nn.init.constant_(network.weight, 9.0))
    trainer.run([0], max_epochs=2)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 9


def test_a_run_shorter_than_the_validation_interval_leaves_a_model(tmp_path: Path, caplog) -> None:
    network, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    ModelSelection(network, str(tmp_path / "model.pt"), Engine(lambda engine, batch: None)).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert (tmp_path / "model.pt").is_file()
    assert "No validation was run" in caplog.text


def test_selection_remembers(tmp_path: Path) -> None:
    selection = ModelSelection(nn.Linear(1, 1), str(tmp_path / "model.pt"), None)
    assert math.isinf(selection.best)
    state = {"best": 0.25, "waited": 2, "least_loss": 0.5, "rising": 1}
    selection.load_state_dict(state)
    assert selection.state_dict() == {**state, "measured_by": {}}


def test_values_of_another_validation_do_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def selection(measures: list[str]) -> ModelSelection:
        return ModelSelection(nn.Linear(1, 1), str(tmp_path / "model.pt"), None, measured_by={"measures": measures})

    first, same, other, new = (selection(names) for names in (["kd_tiny"], ["kd_tiny"], ["kd_imagenet"], ["kd_tiny"]))
    first.best = 0.25
    same.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    new.load_state_dict({**first.state_dict(), "measured_by": ["tiny nodule encoder", 64, 1.5, 15]})  # of 0.2
    assert same.best == 0.25
    assert math.isinf(other.best)
    assert math.isinf(new.best)
    assert caplog.text.count("earlier values do not count") == 2


def test_the_record_says_what_chose_the_weights(tmp_path: Path) -> None:
    preprocessing = nodule_transform(64, (-1000, 400), "linear")
    how = {"split": "validation", "measures": ["kd_imagenet"], "images": 64}
    run_validations([1.0], tmp_path / "model.pt", preprocessing=preprocessing, measured_by=how)
    assert read_record(tmp_path / "model.pt")["chosen"] == how
    assert chosen_on(tmp_path / "model.pt") == "validation"
    selection = ModelSelection(
        nn.Linear(1, 1), str(tmp_path / "model.pt"), None, 0, 0, how, preprocessing=preprocessing
    )
    selection.attach(trainer := Engine(lambda engine, batch: None))
    trainer.run([0], max_epochs=1)
    assert chosen_on(tmp_path / "model.pt") is None, "no validation has chosen these"
