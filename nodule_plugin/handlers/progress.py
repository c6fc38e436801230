"""What a training run shows while it runs: one line, curves as a table and a picture, TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from nodule_plugin.data.order import StepSampler
from nodule_plugin.diffusion.iteration import StepEvents, count_steps
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing, write_text_atomically
from nodule_plugin.handlers.selection import HELD_OUT_LOSS
from nodule_plugin.handlers.validation import TRAINING_LOSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.utils.tensorboard import SummaryWriter


class TrainingProgress:
    """One progress line for the whole run: images of all images, images per second, time left, epoch, step and loss.

    Args:
        sampler: of the trainer's data.
    """

    def __init__(self, sampler: StepSampler) -> None:
        self.sampler = sampler
        self.bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Show the line while ``engine`` trains; of several processes the first shows it."""
        count_steps(engine)
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(StepEvents.STEP_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        if self.bar is None:
            total = engine.state.max_epochs * self.sampler.length
            # Not when the run starts: the checkpoint is read only then.
            self.bar = tqdm(total=total, initial=self._images(engine, engine.state.iteration - 1), unit="image")

    def _step(self, engine: Engine) -> None:
        text = {"epoch": engine.state.epoch, "step": engine.state.step, "loss": f"{engine.state.step_loss:.4f}"}
        self.bar.set_postfix(text, refresh=False)
        self.bar.update(self._images(engine, engine.state.iteration) - self.bar.n)

    def _images(self, engine: Engine, iterations: int) -> int:
        epochs, batches = divmod(iterations, len(self.sampler))
        together = self.sampler.batch_size * self.sampler.world_size
        return epochs * self.sampler.length + min(batches * together, self.sampler.length)

    def _stop(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def open_tensorboard(log_dir: str) -> SummaryWriter:
    """TensorBoard's writer.

    Raises:
        InputError: if the folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter  # only here: a run without it, on a bare GPU, need not have it

    try:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=log_dir):  # TensorBoard writes in a thread, whose errors are shown as tracebacks
            return SummaryWriter(log_dir)
    except OSError as error:
        raise InputError(
            f"output_dir: {log_dir} cannot be written ({error.strerror}); make room or give another folder"
        ) from error


class TrainingCurves:
    """Losses, distance and learning rate over the run, as ``curves.csv``, ``curves.png`` and in TensorBoard.

    A line for each epoch: the mean loss of its steps, and what its validation measured. The lines belong into
    checkpoints, so that a run that was interrupted has one curve.

    Args:
        directory: of both files.
        optimizer: tells the learning rate.
        evaluator: the validation whose metrics join the trainer's own, and whose key metric is drawn; None for none.
        summary_writer: of TensorBoard; None for none. It also gets the loss of every step.
    """

    def __init__(
        self,
        directory: str,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine | None,
        summary_writer: Any = None,
    ) -> None:
        self.directory = Path(directory)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.summary_writer = summary_writer
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Note every step and epoch of the trainer. Attach it after the validations."""
        count_steps(engine)
        engine.add_event_handler(StepEvents.STEP_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    def _step(self, engine: Engine) -> None:
        self._losses.append(engine.state.step_loss)
        if self.summary_writer is not None:
            self.summary_writer.add_scalar("train_loss", engine.state.step_loss, engine.state.step)

    def _epoch(self, engine: Engine) -> None:
        row = {
            "epoch": engine.state.epoch,
            "step": engine.state.step,
            "loss": sum(self._losses) / len(self._losses) if self._losses else math.nan,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        self._losses = []
        metrics = dict(engine.state.metrics)
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            metrics |= self.evaluator.state.metrics
        row |= {name: float(value) for name, value in metrics.items()}
        self.rows.append(row)
        if idist.get_rank() > 0:
            return
        if self.summary_writer is not None:
            for name, value in row.items():
                self.summary_writer.add_scalar(f"epoch/{name}", value, engine.state.epoch)
        write_text_atomically(self.directory / "curves.csv", self._table())
        if metrics or engine.state.epoch == engine.state.max_epochs:
            draw_curves(self.rows, self._metric_name(), self.directory / "curves.png")

    def _metric_name(self) -> str:
        return "distance" if self.evaluator is None else self.evaluator.state.key_metric_name

    def _table(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """All lines, and the losses of the epoch that is under way."""
        return {"rows": self.rows, "losses": self._losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.rows, self._losses = list(state["rows"]), list(state["losses"])


def draw_curves(rows: list[dict[str, float]], metric_name: str, path: Path) -> None:
    """Draw losses, and the distance with its interval, over the epochs; where several make it, each of them too.

    Args:
        rows: see :class:`TrainingCurves`.
        metric_name: of the distance.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # only here: a run without curves need not load it

    measured = {name.removesuffix("_low") for row in rows for name in row if name.endswith("_low")} - {metric_name}
    names = [metric_name, *sorted(measured)]
    figure = Figure(figsize=(4.5 * (1 + len(names)), 3.4), layout="constrained")
    losses, *panels = figure.subplots(1, 1 + len(names))
    for name, label in (
        ("loss", "training steps, as weighted"),
        (TRAINING_LOSS, "training images"),
        (HELD_OUT_LOSS, "held-out images"),
    ):
        epochs, values = _series(rows, name)
        if epochs:
            losses.plot(epochs, values, label=label, alpha=0.45 if name == "loss" else 1, lw=1 if name == "loss" else 2)
    losses.set(xlabel="epoch", ylabel="denoising loss")
    losses.legend(frameon=False)
    for axes, name in zip(panels, names):
        _draw_distance(axes, rows, name)
    for axes in (losses, *panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw_distance(axes: Axes, rows: list[dict[str, float]], name: str) -> None:
    epochs, values = _series(rows, name)
    if epochs:
        axes.plot(epochs, values, "o-", color="C3", lw=2)
        limits = [_series(rows, f"{name}_{side}") for side in ("low", "high")]
        if limits[0][0]:
            axes.fill_between(limits[0][0], limits[0][1], limits[1][1], color="C3", alpha=0.2, lw=0, label="95 %")
            axes.legend(frameon=False)
        value, epoch = min(zip(values, epochs))
        side = {epochs[-1]: "right", epochs[0]: "left"}.get(epoch, "center")  # beyond an end stand the axis's numbers
        axes.annotate(f"{value:.3g}", (epoch, value), (0, -14), textcoords="offset points", ha=side)
    axes.set(xlabel="epoch", ylabel=name.replace("_", " "))


def _series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["epoch"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    return [epoch for epoch, _ in points], [value for _, value in points]
