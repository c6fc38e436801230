"""One iteration of training, for the ``iteration_update`` of MONAI's SupervisedTrainer.

MONAI's own iteration knows mixed precision on CUDA only, no clipping, and keeps its gradient scaler out of checkpoints.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, EventEnum
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nodule_plugin.data.order import StepSampler
from nodule_plugin.diffusion import sampling
from nodule_plugin.errors import InputError


class StepEvents(EventEnum):
    """Events of a trainer beyond Ignite's.

    ``STEP_COMPLETED`` follows an optimizer step, which may take several iterations; ``engine.state.step`` counts them
    and ``engine.state.step_loss`` is the mean loss of all the step's samples, of all processes.
    """

    STEP_COMPLETED = "step_completed"


class TrainingIteration:
    """Forward and backward pass of a batch and, where it ends a step, the optimizer's step.

    The batch's loss must come weighted as :class:`nodule_plugin.data.order.SampleKey` says, so that losses of a step
    add up. Its state (the gradient scaler's, the schedule's) belongs into checkpoints.

    Args:
        optimizer: of the network's parameters.
        sampler: tells which batches end a step.
        precision: of the forward pass, see :data:`nodule_plugin.diffusion.sampling.PRECISIONS`; weights, loss and
            optimizer stay float32. float16 scales the loss so that small gradients do not vanish (Micikevicius et al.,
            ICLR 2018, arXiv:1710.03740) and leaves out steps whose gradients overflow.
        max_grad_norm: gradients of a greater norm are shortened to it (Pascanu et al., ICML 2013); None for no limit.
        lr_scheduler: stepped after each optimizer step; None keeps the learning rate.

    Raises:
        InputError: if a setting is out of its range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        sampler: StepSampler,
        precision: str = "float32",
        max_grad_norm: float | None = None,
        lr_scheduler: Any = None,
    ) -> None:
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise InputError(f"max_grad_norm: a number above 0, or null for none, is needed, not {max_grad_norm}")
        self.optimizer = optimizer
        self.sampler = sampler
        self.dtype = sampling.precision_dtype(precision)
        self.max_grad_norm = max_grad_norm
        self.lr_scheduler = lr_scheduler
        device = optimizer.param_groups[0]["params"][0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._loss: torch.Tensor | float = 0.0

    def __call__(self, engine: Any, batchdata: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Train on a batch.

        Returns:
            A list of one dictionary with the keys of MONAI's SupervisedTrainer.

        Raises:
            InputError: if the loss is no longer a number, with the step and what to change.
        """
        inputs, target, args, kwargs = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        engine.state.output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: target}
        ends = self.sampler.ends_step((engine.state.iteration - 1) % engine.state.epoch_length + 1)
        engine.network.train()
        with _gradients_stay_here(engine.network, unless=ends):
            with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                prediction = engine.inferer(inputs, engine.network, *args, **kwargs)
            engine.state.output[CommonKeys.PRED] = prediction
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            loss = engine.loss_function(prediction, target)
            weight = sum(batchdata["weight"])
            engine.state.output[CommonKeys.LOSS] = loss.detach() / weight if weight else loss.detach()
            engine.fire_event(IterationEvents.LOSS_COMPLETED)
            self.scaler.scale(loss).backward()
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self._loss = self._loss + loss.detach()
        if ends:
            self._step(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        # A list, as MONAI's engines have after decollating: what `--tracking mlflow` reads the loss from.
        return [engine.state.output]

    def _step(self, engine: Any) -> None:
        total = float(idist.all_reduce(self._loss)) / idist.get_world_size()
        self._loss = 0.0
        if not math.isfinite(total):
            raise InputError(
                f"training: the loss is {total} at step {engine.state.step + 1}; lower learning_rate, set max_grad_norm"
                " or another precision, and go on from the last checkpoint"
            )
        if self.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = self.scaler.get_scale() < scale
        if self.lr_scheduler is not None and not skipped:
            self.lr_scheduler.step()
        engine.state.step += 1
        engine.state.step_loss = total
        engine.fire_event(StepEvents.STEP_COMPLETED)

    def state_dict(self) -> dict[str, Any]:
        """The gradient scaler's and the schedule's state."""
        schedule = None if self.lr_scheduler is None else self.lr_scheduler.state_dict()
        return {"scaler": self.scaler.state_dict(), "lr_scheduler": schedule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off."""
        self.scaler.load_state_dict(state["scaler"])
        if self.lr_scheduler is not None and state["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])


def _gradients_stay_here(network: nn.Module, unless: bool) -> Any:
    """Within a step only its last batch exchanges gradients between processes."""
    if unless or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


def count_steps(engine: Engine) -> None:
    """Give ``engine`` the events and counters of :class:`StepEvents`, once."""
    if not hasattr(engine.state, "step"):
        engine.register_events(*StepEvents)
        engine.state.step = 0
