from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
from ignite.engine import Engine, Events
from PIL import Image
from tiny_sd import make_tiny_sd
from training_run import Run

from nodule_plugin.errors import InputError
from nodule_plugin.handlers.checkpoint import TrainingCheckpoint
from nodule_plugin.handlers.dry_run import DryRun
from nodule_plugin.handlers.progress import TrainingCurves, TrainingProgress, open_tensorboard


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd"))


def run_with_curves(base: Path, folder: Path, epochs: int) -> TrainingCurves:
    run = Run(base, epochs=epochs, schedule="constant")
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = "distance"
    curves = TrainingCurves(str(folder), run.optimizer, evaluator)

    def validate(engine: Engine) -> None:
        if engine.state.epoch % 2 == 0:
            evaluator.state.epoch = engine.state.epoch
            values = {"distance": 1 / engine.state.epoch, "distance_low": 0.0, "distance_high": 1.0}
            evaluator.state.metrics = values
            engine.state.metrics["held_out_loss"] = 0.5
        else:
            engine.state.metrics.pop("held_out_loss", None)

    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    curves.attach(run.trainer)
    saved = {"network": run.network, "curves": curves}
    TrainingCheckpoint(str(folder / "checkpoints"), saved, run.sampler).attach(run.trainer)
    run.train()
    return curves


def test_curves_go_on_after_an_interruption(base: Path, tmp_path: Path) -> None:
    run_with_curves(base, tmp_path, epochs=2)
    run_with_curves(base, tmp_path, epochs=4)
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows] == ["3", "6", "9", "12"]
    assert [row["distance"] for row in rows] == ["", "0.5", "", "0.25"]
    assert [row["held_out_loss"] for row in rows] == ["", "0.5", "", "0.5"]
    assert all(float(row["loss"]) > 0 and row["learning_rate"] == "0.001" for row in rows)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 1000


def test_tensorboard_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"output_dir: {tmp_path}/file/tensorboard cannot be written"):
        open_tensorboard(str(tmp_path / "file" / "tensorboard"))


def test_the_progress_line_counts_images(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = Run(base, batch_size=1, accumulation_steps=2, epochs=1)
    TrainingProgress(run.sampler).attach(run.trainer)
    run.train()
    line = capfd.readouterr().err
    assert "5/5" in line
    assert "image/s" in line
    assert "epoch=1, step=3, loss=" in line


def test_a_dry_run_reports_and_ends(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(base, batch_size=2, accumulation_steps=2, epochs=10)
    DryRun(run.ema, cached=True).attach(run.trainer)
    run.train()
    assert run.trainer.state.epoch == 0
    report = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in run.network.parameters())
    for words in ("nothing is written", f"{count:,}", "2 an epoch, 20 in 10 epochs", "4 images, ", "expected time"):
        assert words in report


@pytest.mark.parametrize(("epochs", "cached", "seconds"), [(2, True, 5), (10, True, 20), (10, False, 25)])
def test_a_dry_run_counts_what_is_encoded(
    base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    cached: bool,
    seconds: int,
) -> None:
    """Five images, each with a cache once in at most eight orientations, half a second an encoding."""
    run, clock = Run(base, batch_size=2, accumulation_steps=2, epochs=epochs), itertools.count()
    monkeypatch.setattr(DryRun, "_clock", lambda *_: next(clock))
    DryRun(run.ema, cached=cached).attach(run.trainer)
    run.train()
    assert f"0.5 s an image, 0:00:{seconds:02d} in all" in capsys.readouterr().out
