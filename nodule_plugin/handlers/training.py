"""Handlers of the training run: seeds, checkpoints to resume from, choice of the model, sample grids."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.utils import CommonKeys
from torch import nn
from torchvision.utils import save_image
from tqdm import tqdm

from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing
from nodule_plugin.metrics.distribution import FeatureDistanceMetric, KernelDistance
from nodule_plugin.settings import as_flag

logger = logging.getLogger(__name__)


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` that leaves either the whole new file or the old one."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


class EpochSeed:
    """Seed every epoch's randomness from the run's seed and the epoch's number.

    A run resumed at an epoch then draws what the uninterrupted run would have drawn: shuffling, augmentation, noise,
    timesteps and caption dropout.

    Args:
        seed: of the run.
        transforms: MONAI transforms with random states of their own.
    """

    def __init__(self, seed: int, transforms: Sequence[Any] = ()) -> None:
        self.seed = seed
        self.transforms = list(transforms)

    def attach(self, engine: Engine) -> None:
        """Seed at each epoch's start, before the data loader is asked for its order."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = self.seed + 1_000_003 * engine.state.epoch
        torch.manual_seed(seed)
        for transform in self.transforms:
            transform.set_random_state(seed=seed % 2**32)


class WeightAverage:
    """An exponential moving average of the network's weights, which samples better than the last weights do.

    The average of Polyak and Juditsky (SIAM J Control Optim 1992) with decaying memory, as Ho et al. (NeurIPS
    2020) use it for diffusion; for the first steps the memory is ``(1 + n) / (10 + n)``, so that a short run is not
    dominated by where it began.

    Args:
        network: averaged after every step.
        decay: share of the average that stays at each step, such as 0.9999. None: no average; :attr:`model` is then the
            network itself.

    Raises:
        InputError: if ``decay`` is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise InputError(f"ema_decay: a number between 0 and 1, or null for no average, is needed, not {decay}")
        self.network = network
        self.decay = decay
        self.model = network if decay is None else copy.deepcopy(network).requires_grad_(False).eval()
        self.steps = 0

    def attach(self, engine: Engine) -> None:
        """Average after each step of ``engine``."""
        if self.decay is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        self.steps += 1
        keep = min(self.decay or 0.0, (1 + self.steps) / (10 + self.steps))
        for average, current in zip(self.model.parameters(), self.network.parameters()):
            average.data.lerp_(current.data, 1 - keep)
        for kept, buffer in zip(self.model.buffers(), self.network.buffers()):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and over how many steps they run."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


class TrainingCheckpoint:
    """Save at epochs' ends what a run needs to go on, and go on from the newest such file when a run starts.

    Args:
        directory: where ``epoch_0007.pt`` and the like are kept.
        save_dict: name -> object with ``state_dict`` and ``load_state_dict``; the trainer joins them by itself.
        interval: epochs between two files; the last epoch is always saved.
        keep: how many files stay.
        resume: False starts anew and removes older files.
    """

    def __init__(
        self, directory: str, save_dict: Mapping[str, Any], interval: int = 1, keep: int = 2, resume: bool | str = True
    ) -> None:
        self.directory = Path(directory)
        self.objects = dict(save_dict)
        self.interval = interval
        self.keep = keep
        self.resume = as_flag("resume", resume)

    def attach(self, engine: Engine) -> None:
        """Load when the run starts, save when epochs end."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def files(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.directory.glob("epoch_*.pt"))

    def load(self, engine: Engine) -> None:
        """Restore every object and the trainer's place from the newest file that can be read, if there are any."""
        if not self.resume:
            for path in self.files():
                path.unlink()
        if not self.files():
            return
        path, state = self._newest()
        try:
            for name, target in self.objects.items():
                target.load_state_dict(state[name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"checkpoint {path}: it is of another run ({error}); give another output_dir or say --resume false"
            ) from error
        engine.state.epoch, engine.state.iteration = state["trainer"]["epoch"], state["trainer"]["iteration"]
        logger.info("Resumed from %s after epoch %d.", path, engine.state.epoch)

    def _newest(self) -> tuple[Path, dict[str, Any]]:
        for path in reversed(self.files()):
            try:
                return path, torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, UnpicklingError, EOFError, OSError) as error:
                logger.warning("Checkpoint %s is damaged (%s).", path, str(error).splitlines()[0])
        raise InputError(f"checkpoints in {self.directory}: none can be read; remove them or say --resume false")

    def save(self, engine: Engine) -> None:
        """Write a checkpoint where one is due and remove the oldest beyond ``keep``."""
        epoch = engine.state.epoch
        if epoch % self.interval and epoch != engine.state.max_epochs and not engine.should_terminate:
            return
        state = {name: target.state_dict() for name, target in self.objects.items()}
        state["trainer"] = {"epoch": epoch, "iteration": engine.state.iteration}
        save_atomically(state, self.directory / f"epoch_{epoch:04d}.pt")
        for path in self.files()[: -self.keep]:
            path.unlink()


class ModelSelection:
    """Keep the weights of the best validation, and stop training when validations have stopped improving.

    Attach it to the trainer after the handler that runs the validations.

    Args:
        network: whose weights are written (the moving average, as a rule).
        path: of the raw state dict, ``model.pt``.
        evaluator: the validation; None where there is nothing to validate on. Where none is run, the last weights are
            written.
        metric_name: key of the evaluator's metrics; lower is better.
        patience: validations without improvement after which training stops; 0 never stops.
        min_improvement: share of the best value by which a value must be lower to count as an improvement.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str,
        evaluator: Engine | None,
        metric_name: str,
        patience: int = 0,
        min_improvement: float = 0.0,
    ) -> None:
        self.network = network
        self.path = Path(path)
        self.evaluator = evaluator
        self.metric_name = metric_name
        self.patience = patience
        self.min_improvement = min_improvement
        self.best = math.inf
        self.waited = 0
        self.trainer: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Look at every validation of the trainer ``engine``."""
        self.trainer = engine
        engine.add_event_handler(Events.COMPLETED, self._write_unjudged)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric_name])
        if value < self.best - self.min_improvement * abs(self.best) or math.isinf(self.best):
            logger.info("%s %.5f is the best so far; wrote %s", self.metric_name, value, self.path)
            self.best, self.waited = value, 0
            self._write(engine)
            return
        self.waited += 1
        if self.patience and self.waited >= self.patience and self.trainer is not None:
            logger.info(
                "Training stops: %s has not fallen below %.5f for %d validations.",
                self.metric_name,
                self.best,
                self.waited,
            )
            self.trainer.terminate()

    def _write(self, engine: Engine) -> None:
        save_atomically(self.network.state_dict(), self.path)

    def _write_unjudged(self, engine: Engine) -> None:
        if math.isinf(self.best):
            logger.warning("No validation was run: %s holds the weights of the last epoch.", self.path)
            self._write(engine)

    def state_dict(self) -> dict[str, float]:
        """The best value and how many validations have passed since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.best, self.waited = state["best"], int(state["waited"])


class SetDistance(Metric):
    """A distance between the generated and the real images of a validation, as an Ignite metric.

    Args:
        metric: such as :class:`nodule_plugin.metrics.distribution.KernelDistanceMetric`.
    """

    def __init__(self, metric: FeatureDistanceMetric) -> None:
        self.metric = metric
        super().__init__(output_transform=_predictions_and_labels)

    def reset(self) -> None:
        """Forget all images."""
        self.metric.reset()

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take a batch of (generated, real) images, (B, 3, H, W) in [-1, 1]."""
        generated, real = output
        self.metric.update(generated, real=False)
        self.metric.update(real, real=True)

    def compute(self) -> float:
        """The distance; its mean where the metric gives mean and deviation."""
        value: Any = self.metric.compute()
        return float(value.mean if isinstance(value, KernelDistance) else value)


def _predictions_and_labels(output: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return output[CommonKeys.PRED], output[CommonKeys.LABEL]


class SampleGrid:
    """Write the first generated images of each validation as one picture, and to TensorBoard.

    Args:
        directory: where ``samples_0007.png`` (the epoch's number) and the like go.
        count: images in the grid.
        summary_writer: of TensorBoard; None writes the file only.
    """

    def __init__(self, directory: str, count: int = 32, summary_writer: Any = None) -> None:
        self.directory = Path(directory)
        self.count = count
        self.summary_writer = summary_writer
        self.images: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Collect during a validation, write at its end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.images = []

    def _collect(self, engine: Engine) -> None:
        missing = self.count - sum(len(batch) for batch in self.images)
        if missing > 0:
            self.images.append(engine.state.output[CommonKeys.PRED][:missing].detach().float().cpu())

    def _write(self, engine: Engine) -> None:
        images = torch.cat(self.images).clamp(-1, 1) / 2 + 0.5
        with replacing(self.directory / f"samples_{engine.state.epoch:04d}.png") as temporary:
            save_image(images, temporary, nrow=8)
        if self.summary_writer is not None:
            self.summary_writer.add_images("generated", images, engine.state.epoch)


class TrainingProgress:
    """One progress line for the whole run: step of all steps, steps per second, time left, loss."""

    def attach(self, engine: Engine) -> None:
        """Show the line while ``engine`` trains."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        engine.add_event_handler(Events.TERMINATE, self._stop)

    def _start(self, engine: Engine) -> None:
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = tqdm(desc="training", total=total, unit="step", mininterval=1)

    def _step(self, engine: Engine) -> None:
        if self.bar.n == 0:  # a resumed run has come further than this process has
            self.bar.initial = self.bar.n = engine.state.iteration - 1
        self.bar.set_postfix(epoch=engine.state.epoch, loss=f"{last_loss(engine.state.output):.4f}", refresh=False)
        self.bar.update()

    def _stop(self, engine: Engine) -> None:
        self.bar.close()


def last_loss(output: Mapping[str, torch.Tensor]) -> float:
    """The loss in a MONAI trainer's output."""
    return float(output[CommonKeys.LOSS])


class AttachHandler:
    """Attach a handler that the configuration defines elsewhere.

    MONAI's ``check_properties`` takes every member of a training workflow's handler list for a dictionary with
    ``_target_``, and fails on a reference such as ``"@ema"``.

    Args:
        handler: with a method ``attach``.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        """Attach it to ``engine``."""
        self.handler.attach(engine)


def random_transforms(transform: Callable) -> list[Any]:
    """The members of a MONAI Compose that draw random numbers, for :class:`EpochSeed`."""
    return [member for member in getattr(transform, "transforms", ()) if hasattr(member, "set_random_state")]
