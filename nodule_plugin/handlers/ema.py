"""Moving average of a network's weights during training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from nodule_plugin.diffusion.iteration import StepEvents, count_steps
from nodule_plugin.errors import InputError


class ExponentialMovingAverage:
    """An exponential moving average of the network's weights, which samples better than the last weights do.

    The average of Polyak and Juditsky (SIAM J Control Optim 1992) with decaying memory, as Ho et al. (NeurIPS
    2020) use it for diffusion; for the first steps the memory is ``(1 + n) / (10 + n)``, so that a short run is not
    dominated by where it began. Frozen weights are shared with the network, not copied.

    Why none of the libraries': Ignite's EMAHandler counts iterations instead of optimizer steps and has no state for a
    checkpoint; it and torch's AveragedModel copy frozen weights too, all 3.2 GiB of them in low-rank training of Stable
    Diffusion; diffusers' EMAModel is no network that a validation could call while training keeps its own.

    Args:
        network: averaged after every optimizer step.
        decay: fraction of the average that stays at each step, such as 0.9999. None: no average; :attr:`model` is
            then the network itself.

    Raises:
        InputError: if ``decay`` is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise InputError(f"ema_decay: a number between 0 and 1, or null for no average, is needed, not {decay}")
        self.network = network
        self.decay = decay
        self.model = network if decay is None else _copy_of(network)
        self.steps = 0

    def attach(self, engine: Engine) -> None:
        """Average after each step of ``engine``."""
        count_steps(engine)
        if self.decay is not None:
            engine.add_event_handler(StepEvents.STEP_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        self.steps += 1
        keep = min(self.decay or 0.0, (1 + self.steps) / (10 + self.steps))
        pairs = [
            (average, current)
            for average, current in zip(self.model.parameters(), self.network.parameters())
            if average is not current
        ]
        if pairs:
            averages, currents = zip(*pairs)
            torch._foreach_lerp_(averages, currents, 1 - keep)
        for kept, buffer in zip(self.model.buffers(), self.network.buffers()):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and over how many steps they run."""
        return {"model": {} if self.decay is None else self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off."""
        if self.decay is not None:
            self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _copy_of(network: nn.Module) -> nn.Module:
    frozen = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
    model = copy.deepcopy(network, frozen)
    return model.requires_grad_(False).eval()
