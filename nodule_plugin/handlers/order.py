"""Where in its data a training run is."""

from __future__ import annotations

from ignite.engine import Engine, Events

from nodule_plugin.data.order import StepSampler


class EpochOrder:
    """Tell the sampler at each epoch's start which epoch it is and, after a resumption, how many batches to leave out.

    Args:
        sampler: of the trainer's data.
    """

    def __init__(self, sampler: StepSampler) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Follow the trainer ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.sampler.set_position(engine.state.epoch, engine.state.iteration % len(self.sampler))
