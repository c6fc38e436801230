"""Which weights of a training run are kept, and when it stops."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from nodule_plugin.diffusion.lora import low_rank_tensors, save_low_rank
from nodule_plugin.diffusion.network import export_weights
from nodule_plugin.diffusion.provenance import write_record
from nodule_plugin.weights import save_tensors

logger = logging.getLogger(__name__)
HELD_OUT_LOSS = "held_out_loss"
"""Name, in the trainer's metrics, of the denoising loss of held-out images."""


class ModelSelection:
    """Keep the weights of the best validation, and stop training when validations have stopped improving.

    Attach it to the trainer after the handlers that run the validations. Why a run stopped is logged and kept in
    :attr:`reason`.

    Args:
        network: whose weights are written (the moving average, as a rule), as
            :func:`nodule_plugin.diffusion.network.export_weights` gives them; low-rank updates, where it has some, also
            by themselves, beside these.
        path: of the raw state dict, ``model.pt``.
        evaluator: the validation, whose key metric is better the lower it is; None where there is nothing to validate
            on. Where none is run, the last weights are written.
        patience: validations without improvement after which training stops; 0 never stops.
        overfit_patience: validations in a row at which the held-out loss (:data:`HELD_OUT_LOSS` in the trainer's
            metrics) has not fallen below its least value, after which training stops; 0 never stops.
        measured_by: what decides the validation's values (of JSON's types): measures, images, guidance, steps. Values
            from before a change of it do not count when the run goes on. Weights that a validation has chosen carry it
            in the record beside them.
        min_improvement: fraction of the best value by which a value must be lower to count as an improvement.
        preprocessing: of the training images, for the record beside the weights, see
            :func:`nodule_plugin.diffusion.provenance.write_record`; None writes none.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str,
        evaluator: Engine | None,
        patience: int = 0,
        overfit_patience: int = 0,
        measured_by: Mapping[str, Any] | None = None,
        min_improvement: float = 0.0,
        preprocessing: Any = None,
    ) -> None:
        self.network = network
        self.path = Path(path)
        self.evaluator = evaluator
        self.patience = patience
        self.overfit_patience = overfit_patience
        self.measured_by = dict(measured_by or {})
        self.min_improvement = min_improvement
        self.preprocessing = preprocessing
        self.best = self.least_loss = math.inf
        self.waited = self.rising = 0
        self.reason: str | None = None

    def attach(self, engine: Engine) -> None:
        """Look at every validation of the trainer ``engine``."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write_unjudged)

    def __call__(self, engine: Engine) -> None:
        """Judge the validation that this epoch has brought, if it has brought one."""
        validation = None if self.evaluator is None else self.evaluator.state
        if validation is None or validation.epoch != engine.state.epoch or not validation.metrics:
            return
        value = float(validation.metrics[validation.key_metric_name])
        if value < self.best - self.min_improvement * abs(self.best) or math.isinf(self.best):
            self.best, self.waited = value, 0
            self._write(self.measured_by)
            logger.info("%s %.5f is the best so far; wrote %s", validation.key_metric_name, value, self.path)
        else:
            self.waited += 1
        loss = float(engine.state.metrics.get(HELD_OUT_LOSS, math.nan))
        if loss < self.least_loss:
            self.least_loss, self.rising = loss, 0
        else:
            self.rising += 1
        self.reason = self._reason_to_stop(validation.key_metric_name)
        if self.reason is not None:
            logger.info("Training stops after epoch %d: %s.", engine.state.epoch, self.reason)
            engine.terminate()

    def _reason_to_stop(self, metric_name: str) -> str | None:
        if self.patience and self.waited >= self.patience:
            return f"{metric_name} has not fallen below {self.best:.5f} for {self.waited} validations"
        if self.overfit_patience and self.rising >= self.overfit_patience:
            return f"overfitting: no held-out loss below {self.least_loss:.5f} for {self.rising} validations"
        return None

    def _write(self, chosen: Mapping[str, Any] | None = None) -> None:
        if idist.get_rank() == 0:
            save_tensors(export_weights(self.network), self.path)
            if updates := low_rank_tensors(self.network):
                save_low_rank(updates, self.path.parent)
            if self.preprocessing is not None:
                write_record(self.path, self.preprocessing, chosen)

    def _write_unjudged(self, engine: Engine) -> None:
        if self.reason is None:
            logger.info("Training stops after epoch %d: it was the last.", engine.state.epoch)
        if math.isinf(self.best):
            logger.warning("No validation was run: %s holds the weights of the last epoch.", self.path)
            self._write()

    def state_dict(self) -> dict[str, Any]:
        """The best values and how many validations have passed since."""
        values = {name: getattr(self, name) for name in ("best", "waited", "least_loss", "rising")}
        return {**values, "measured_by": self.measured_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off; anew where validations are no longer the same."""
        old = state.get("measured_by", self.measured_by)
        if old != self.measured_by:
            logger.warning("Validations were %s and are %s: earlier values do not count.", old, self.measured_by)
            return
        for name in ("best", "waited", "least_loss", "rising"):
            setattr(self, name, type(getattr(self, name))(state[name]))
