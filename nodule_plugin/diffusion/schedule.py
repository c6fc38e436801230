"""Learning rate schedules, counted in optimizer steps."""

from __future__ import annotations

import torch
from diffusers.optimization import SchedulerType, get_scheduler

from nodule_plugin.errors import InputError


def learning_rate_schedule(
    name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule of diffusers.

    Args:
        name: "constant", "linear", "cosine" or another of diffusers' names.
        optimizer: whose learning rate is the highest value of the schedule.
        warmup_steps: over which the learning rate rises from 0 (Goyal et al., arXiv:1706.02677, section 2.2).
        total_steps: of the run; what decays has decayed by then.

    Raises:
        InputError: if there is no such schedule, or the warm-up is longer than the run.
    """
    names = [kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT]
    if name not in names:
        raise InputError(f"lr_schedule: there is no {name!r}; choose one of {', '.join(names)}")
    if not 0 <= warmup_steps <= total_steps:
        raise InputError(
            f"lr_warmup_steps: a number from 0 to the run's {total_steps} steps is needed, not {warmup_steps}"
        )
    kind = "constant_with_warmup" if name == "constant" and warmup_steps else name
    return get_scheduler(kind, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
