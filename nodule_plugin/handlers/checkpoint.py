"""Checkpoints that a run resumes from, to the same weights as if it had never stopped."""

from __future__ import annotations

import json
import logging
import signal
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import ignite.distributed as idist
import torch
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

from nodule_plugin.data.order import StepSampler
from nodule_plugin.diffusion.iteration import StepEvents, count_steps
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.recipe import differences
from nodule_plugin.settings import as_flag, whole_number
from nodule_plugin.weights import save_tensors

logger = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingCheckpoint:
    """Save what a run needs to go on, and go on from the newest such file when a run starts.

    Files are written at optimizer steps only. Which samples a step takes and their random numbers follow from the run's
    seed and the step's number (:mod:`nodule_plugin.data.order`), so a file holds no data loader's state. The first
    SIGTERM or SIGINT saves after the current step and ends the process with status 128 plus the signal's number; a
    second one ends it at once. Of several processes the first writes and all read. While one run goes on, another into
    the same folder is refused.

    Args:
        directory: where ``step_00001234.pt`` and the like are kept.
        save_dict: name -> object with ``state_dict`` and ``load_state_dict``; the trainer's position is added.
        sampler: of the trainer's data; :class:`~nodule_plugin.handlers.order.EpochOrder` follows where it goes on.
        recipe: setting -> value (of JSON's types) of all that shapes the run. A run goes on with the same only.
        every_steps: steps between two files; None for the end of each epoch. The run's last step is always saved.
        keep: how many files stay.
        resume: False starts anew and removes older files.
        evaluator: validates at the end of epochs. A signal that finds it at work ends it after its current batch, and
            the validation is made anew when the run goes on; of several processes each first ends its validation.
    """

    def __init__(
        self,
        directory: str,
        save_dict: Mapping[str, Any],
        sampler: StepSampler,
        recipe: Mapping[str, Any] | None = None,
        every_steps: int | None = None,
        keep: int = 2,
        resume: bool | str = True,
        evaluator: Engine | None = None,
    ) -> None:
        for name, value in (("checkpoint_steps", every_steps), ("keep_checkpoints", keep)):
            if value is not None:
                whole_number(name, value)
        self.directory = Path(directory)
        self.objects = dict(save_dict)
        self.sampler = sampler
        whole = {"training items": sampler.length, "samples a step": sampler.step_size, "seed": sampler.seed}
        self.recipe = json.loads(json.dumps({**whole, **(recipe or {})}))  # as a file gives it back: lists, no tuples
        self.every_steps = every_steps
        self.keep = keep
        self.resume = as_flag("resume", resume)
        self.evaluator = evaluator
        self._lock = FileLock(self.directory / ".lock", timeout=0)
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._saved: tuple[int, bool] | None = None

    def attach(self, engine: Engine) -> None:
        """Load when the run starts, save when a file is due."""
        count_steps(engine)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(StepEvents.STEP_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        engine.add_event_handler(Events.COMPLETED, self._release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._during_validation, engine)

    def files(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.directory.glob("step_*.pt"))

    def load(self, engine: Engine) -> None:
        """Restore every object and the trainer's position from the newest whole file, if there are any.

        Raises:
            InputError: if none can be read, the newest is of another run, or another process trains here.
        """
        self._take_folder()
        self._hold_signals()
        if not self.resume and idist.get_rank() == 0:
            for path in self.files():
                path.unlink()
        idist.barrier()
        if not self.files():
            return
        path, state = self._newest()
        self._check_recipe(path, state["run"])
        try:
            for name, target in self.objects.items():
                target.load_state_dict(state[name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"checkpoint {path}: it is of another run ({error}); give another output_dir or say --resume false"
            ) from error
        _restore_random_states(state["random"])
        position = state["trainer"]
        self._set_position(engine, position["step"])
        self._saved = (position["step"], position["epoch_closed"])
        logger.info("Resumed from %s: %d epochs, %d steps.", path, engine.state.epoch, engine.state.step)
        if not position["epoch_closed"] and engine.state.iteration % len(self.sampler) == 0:
            engine.fire_event(Events.EPOCH_COMPLETED)  # the validation that the interruption prevented

    def save(self, engine: Engine, epoch_closed: bool) -> None:
        """Write a checkpoint and remove the oldest beyond ``keep``.

        Args:
            engine: the trainer.
            epoch_closed: whether all is done that an epoch's end brings. Where a run stops between an epoch's last step
                and its validation, the validation comes first when it goes on.
        """
        if self._saved == (engine.state.step, epoch_closed):
            return
        self._saved = (engine.state.step, epoch_closed)
        if idist.get_rank() > 0:
            return
        position = {"step": engine.state.step, "epoch_closed": epoch_closed}
        state = {name: target.state_dict() for name, target in self.objects.items()}
        state |= {"trainer": position, "run": self.recipe, "random": _random_states()}
        save_tensors(state, self.directory / f"step_{engine.state.step:08d}.pt")
        for path in self.files()[: -self.keep]:
            path.unlink()

    def _check_recipe(self, path: Path, old: Mapping[str, Any]) -> None:
        if changed := differences(old, self.recipe):
            raise InputError(
                f"checkpoint {path}: it is of a run with {'; '.join(changed)}; give the old settings to go on, another"
                " output_dir, or --resume false to start anew"
            )
        if unknown := [name for name in self.recipe if name not in old]:
            logger.warning("Checkpoint %s is older and does not say its %s: not compared.", path, ", ".join(unknown))

    def _newest(self) -> tuple[Path, dict[str, Any]]:
        for path in reversed(self.files()):
            try:
                with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
                    damaged = archive.testzip()
                if damaged is None:
                    return path, torch.load(path, map_location="cpu", weights_only=True)
                reason = f"the checksum of {damaged} is wrong"
            except (RuntimeError, UnpicklingError, EOFError, OSError, zipfile.BadZipFile) as error:
                reason = str(error).splitlines()[0]
            logger.warning("Checkpoint %s is damaged (%s).", path, reason)
        raise InputError(f"checkpoints in {self.directory}: none can be read; remove them or say --resume false")

    def _set_position(self, engine: Engine, step: int) -> None:
        """Set the trainer behind an optimizer step; its number of iterations may have changed with the processes'."""
        epochs, within = divmod(step, self.sampler.steps_per_epoch)
        engine.state.step = step
        engine.state.epoch = epochs
        engine.state.iteration = epochs * len(self.sampler) + within * self.sampler.accumulation_steps

    def _after_step(self, engine: Engine) -> None:
        if self.every_steps is not None and engine.state.step % self.every_steps == 0:
            self.save(engine, epoch_closed=False)
        number = int(idist.all_reduce(self._signal, op="MAX"))
        if number:
            self._stop(engine, number)

    def _during_validation(self, evaluator: Engine, engine: Engine) -> None:
        # Shards may differ in their number of batches: several processes cannot agree on a batch to end after.
        if self._signal and idist.get_world_size() == 1:
            self._stop(engine, self._signal)

    def _stop(self, engine: Engine, number: int) -> None:
        self.save(engine, epoch_closed=False)
        self._release(engine)
        name = signal.Signals(number).name
        logger.warning("Stopped by %s after step %d; the same command goes on from there.", name, engine.state.step)
        raise SystemExit(128 + number)

    def _after_epoch(self, engine: Engine) -> None:
        if self.every_steps is None or engine.state.epoch == engine.state.max_epochs or engine.should_terminate:
            self.save(engine, epoch_closed=True)

    def _take_folder(self) -> None:
        if idist.get_rank() > 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(
                f"checkpoints in {self.directory}: another process trains into this folder; wait for its end or give"
                " another output_dir"
            ) from None
        except NotImplementedError as error:
            raise InputError(
                f"checkpoints in {self.directory}: its file system has no locks; give an output_dir on another"
            ) from error

    def _hold_signals(self) -> None:
        try:
            self._handlers = {number: signal.signal(number, self._note_signal) for number in _SIGNALS}
        except ValueError:  # not the main thread, where a server runs the training: signals are its own business
            self._handlers = {}

    def _note_signal(self, number: int, frame: Any) -> None:
        self._signal = number
        signal.signal(number, self._handlers[number])
        logger.warning("%s: saving after this step or batch of validation.", signal.Signals(number).name)

    def _release(self, engine: Engine) -> None:
        self._lock.release()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._release(engine)
        if isinstance(error, OSError):  # what the user can mend: a full or read-only disk, an image that is gone
            checkpoint = next(reversed(self.files()), "the start")
            raise InputError(
                f"training: {error.filename or 'a file'} cannot be written or read ({error.strerror or error}); make"
                f" room or bring the file back, and the same command goes on from {checkpoint}"
            ) from error
        raise error


def _random_states() -> dict[str, Any]:
    """Of torch's global generators, from which dropout layers draw; the samples have their own."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _restore_random_states(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
