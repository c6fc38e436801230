"""What a training run will take, found out by a few steps that leave nothing behind."""

from __future__ import annotations

import itertools
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from nodule_plugin.data.order import StepSampler
from nodule_plugin.diffusion.encoding import LatentEncoder

GIB = 2**30


class DryRun:
    """Report parameters, memory, steps and time of a run instead of training.

    Takes a few real steps in this process, on the run's own data, and ends the run before it begins. Attach it first,
    and nothing that writes.

    Args:
        network: that is trained.
        frozen: networks beside it, such as the autoencoder and the text encoder.
        average: the moving average's network; the network itself where there is none.
        optimizer: its states are counted after the steps.
        sampler: of the trainer's data.
        encoder: its time is told apart, since a cache needs it once for each image and orientation.
        cached: whether the run will keep latents.
        steps: optimizer steps that are timed, after one that is not.
    """

    def __init__(
        self,
        network: nn.Module,
        frozen: list[nn.Module],
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        sampler: StepSampler,
        encoder: LatentEncoder,
        cached: bool,
        steps: int = 2,
    ) -> None:
        self.network = network
        self.frozen = frozen
        self.average = average
        self.optimizer = optimizer
        self.sampler = sampler
        self.encoder = encoder
        self.cached = cached
        self.steps = steps

    def attach(self, engine: Engine) -> None:
        """Report when ``engine`` starts, and stop it."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        wanted = (self.steps + 1) * self.sampler.accumulation_steps
        encoding: list[float] = []
        stepping: list[float] = []
        for batch in itertools.islice(itertools.cycle(engine.data_loader), wanted):
            images = len(batch["index"])
            began = self._clock(engine)
            batch["moments"] = list(self.encoder(batch, engine.state.device))
            encoded = self._clock(engine)
            engine.state.iteration += 1
            engine.state.batch = batch
            engine._process_function(engine, batch)
            encoding.append((encoded - began) / images)
            stepping.append(self._clock(engine) - encoded)
        accumulation = self.sampler.accumulation_steps
        step_seconds = sum(stepping[accumulation:]) / self.steps
        self._report(engine, step_seconds, min(encoding))
        engine.terminate()

    def _clock(self, engine: Engine) -> float:
        if torch.device(engine.state.device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _report(self, engine: Any, step_seconds: float, encode_seconds: float) -> None:
        sampler = self.sampler
        group, per_epoch = sampler.step_size, sampler.steps_per_epoch
        total_steps = per_epoch * engine.state.max_epochs
        encodings = sampler.length * (8 if self.cached else engine.state.max_epochs)
        encode_total = encodings * encode_seconds / sampler.world_size
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        states = sum(
            value.nbytes
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        averaged = 0 if self.average is self.network else _bytes_of(trained)
        lines = [
            ("device", f"{engine.state.device}, {sampler.world_size} process(es)"),
            ("trained parameters", f"{sum(p.numel() for p in trained):,}"),
            ("frozen parameters", f"{self._frozen_count():,}"),
            (
                "weights",
                _gib(sum(_bytes_of(module.parameters()) for module in [self.network, *self.frozen])),
            ),
            ("gradients", _gib(_bytes_of(trained))),
            ("optimizer states", _gib(states)),
            ("moving average", _gib(averaged)),
            (
                "peak memory of these steps",
                _gib(peak) if (peak := _peak(engine)) else "this system does not tell",
            ),
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

    def _frozen_count(self) -> int:
        own = sum(parameter.numel() for parameter in self.network.parameters() if not parameter.requires_grad)
        return own + sum(parameter.numel() for module in self.frozen for parameter in module.parameters())


def _bytes_of(parameters: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


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
