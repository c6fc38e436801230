"""What a training run will take, found out by a few steps that leave nothing behind."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Engine, Events

from nodule_plugin.data.order import StepSampler
from nodule_plugin.data.transforms import ORIENTATIONS
from nodule_plugin.diffusion.iteration import count_steps
from nodule_plugin.handlers.ema import ExponentialMovingAverage

GIB = 2**30


class DryRun:
    """Report parameters, memory, steps and time of a run instead of training.

    Takes a few real steps in this process, on the run's own data, and ends the run before it begins. Attach it first,
    and nothing that writes. The trainer's ``prepare_batch`` is a
    :class:`~nodule_plugin.diffusion.training.DenoisingPrepareBatch`, its data are drawn by a
    :class:`~nodule_plugin.data.order.StepSampler`.

    Args:
        ema: the moving average, whose memory counts.
        cached: whether the run will keep latents, so that each image and orientation is encoded once.
        steps: optimizer steps that are timed, after one that is not.
    """

    def __init__(self, ema: ExponentialMovingAverage, cached: bool, steps: int = 2) -> None:
        self.ema = ema
        self.cached = cached
        self.steps = steps

    def attach(self, engine: Engine) -> None:
        """Report when ``engine`` starts, and stop it."""
        count_steps(engine)
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        accumulation = engine.data_loader.batch_sampler.accumulation_steps
        encoding: list[float] = []
        stepping: list[float] = []
        for batch in itertools.islice(itertools.cycle(engine.data_loader), (self.steps + 1) * accumulation):
            images = len(batch["index"])
            began = self._clock(engine)
            batch["moments"] = list(engine.prepare_batch.encoder(batch, engine.state.device))
            encoded = self._clock(engine)
            engine.state.iteration += 1
            engine.state.batch = batch
            engine._process_function(engine, batch)
            encoding.append((encoded - began) / images)
            stepping.append(self._clock(engine) - encoded)
        self._report(engine, sum(stepping[accumulation:]) / self.steps, min(encoding))
        engine.terminate()

    def _clock(self, engine: Engine) -> float:
        if torch.device(engine.state.device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _report(self, engine: Any, step_seconds: float, encode_seconds: float) -> None:
        sampler: StepSampler = engine.data_loader.batch_sampler
        group, per_epoch = sampler.step_size, sampler.steps_per_epoch
        total_steps = per_epoch * engine.state.max_epochs
        encodings = sampler.length * self._encodings(engine)
        encode_total = encodings * encode_seconds / sampler.world_size
        prepare = engine.prepare_batch
        beside = [*prepare.encoder.vae.parameters(), *prepare.conditioner.text_encoder.parameters()]
        weights = list(self.ema.network.parameters())
        trained = [parameter for parameter in weights if parameter.requires_grad]
        frozen = sum(parameter.numel() for parameter in [*weights, *beside] if not parameter.requires_grad)
        states = [value for state in engine.optimizer.state.values() for value in state.values()]
        averaged = 0 if self.ema.model is self.ema.network else _bytes_of(trained)
        peak = _peak(engine)
        lines = [
            ("device", f"{engine.state.device}, {sampler.world_size} process(es)"),
            ("trained parameters", f"{sum(parameter.numel() for parameter in trained):,}"),
            ("frozen parameters", f"{frozen:,}"),
            ("weights", _gib(_bytes_of([*weights, *beside]))),
            ("gradients", _gib(_bytes_of(trained))),
            ("optimizer states", _gib(_bytes_of(value for value in states if isinstance(value, torch.Tensor)))),
            ("moving average", _gib(averaged)),
            ("peak memory of these steps", _gib(peak) if peak else "this system does not tell"),
            ("training images", f"{sampler.length:,}"),
            ("step", f"{group} images, {step_seconds:.3g} s ({group / step_seconds:.3g} images/s)"),
            ("steps", f"{per_epoch:,} an epoch, {total_steps:,} in {engine.state.max_epochs} epochs"),
            (
                "encoding",
                f"{encode_seconds:.3g} s an image, {_time(encode_total)} in all"
                + (" at most (kept after first use)" if self.cached else ""),
            ),
            ("expected time", f"{_time(total_steps * step_seconds + encode_total)}, without validations"),
        ]
        print("Dry run: nothing is written.", *(f"  {name:<27}{value}" for name, value in lines), sep="\n", flush=True)

    def _encodings(self, engine: Any) -> int:
        """How often a run encodes each image at most: with a cache once in each orientation that it draws."""
        if not self.cached:
            return engine.state.max_epochs
        orientations = ORIENTATIONS if engine.data_loader.dataset.augment else 1
        return min(orientations, engine.state.max_epochs)


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _peak(engine: Engine) -> int | None:
    if torch.device(engine.state.device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
