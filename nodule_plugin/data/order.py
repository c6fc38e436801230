"""The order in which a training run sees its samples, the same for any batch size, number of processes or resumption.

A sample is drawn with its own random numbers, which follow from the run's seed, the epoch and the sample's index in the
data set, not from a stream that all samples share. So a run can be stopped after any step, divided among processes or
cut into other batches, and still trains on the same variants, noise and timesteps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from nodule_plugin.errors import InputError
from nodule_plugin.settings import whole_number


class SampleKey(NamedTuple):
    """Which sample a data set is asked for.

    Attributes:
        item: its index in the data set.
        seed: of the sample's random numbers in this epoch, 0 to 2^63 - 1.
        weight: of the sample's loss. Those of one optimizer step add up to the number of processes (whose gradients
            distributed training averages), so that the step follows the mean over all its samples.
    """

    item: int
    seed: int
    weight: float


class StepSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys, grouped into optimizer steps, for one of several processes.

    A step takes ``batch_size * accumulation_steps * world_size`` samples in the epoch's shuffled order; an epoch's last
    step takes what is left. A process that gets no sample of a batch gets one with weight 0, so that all processes take
    part in the same exchanges of gradients.

    Args:
        length: of the data set.
        batch_size: samples in one forward pass of one process.
        accumulation_steps: forward passes to an optimizer step.
        seed: of the run.
        rank, world_size: this process, and how many there are.

    Raises:
        InputError: if there is no sample, or a number is below 1.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        accumulation_steps: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("accumulation_steps", accumulation_steps)):
            whole_number(name, value)
        if length < 1:
            raise InputError("training: the data list has no item to train on; run prepare on more data")
        self.length = length
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epoch = 1
        self._start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration yields.

        Args:
            epoch: counted from 1.
            start: batches of that epoch to leave out, because they were trained on before an interruption.
        """
        self._epoch, self._start = epoch, start

    def __len__(self) -> int:
        """Batches in a whole epoch, the same for every process."""
        return len(self._batches(np.zeros(self.length, np.int64)))

    @property
    def step_size(self) -> int:
        """Samples that all processes together take in an optimizer step."""
        return self.batch_size * self.accumulation_steps * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a whole epoch."""
        return -(-self.length // self.step_size)

    def ends_step(self, batch: int) -> bool:
        """Whether an optimizer step follows the epoch's batch with that number, counted from 1."""
        return batch % self.accumulation_steps == 0 or batch == len(self)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.random.default_rng((self.seed, self._epoch)).permutation(self.length)
        for members, step_size in self._batches(order)[self._start :]:
            weight = self.world_size / step_size
            own = [self._key(index, weight) for index in members[self.rank :: self.world_size]]
            yield own or [self._key(members[0], 0.0)]

    def _batches(self, order: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """(samples of all processes' batches, samples of their optimizer step) one after the other."""
        together, step = self.batch_size * self.world_size, self.step_size
        return [
            (order[at : min(at + together, first + step)], min(step, self.length - first))
            for first in range(0, self.length, step)
            for at in range(first, min(first + step, self.length), together)
        ]

    def _key(self, index: int, weight: float) -> SampleKey:
        return SampleKey(int(index), sample_seed(self.seed, self._epoch, int(index)), weight)


def sample_seed(*words: int) -> int:
    """A seed from 0 to 2^63 - 1 that differs, as good as surely, for different words (whole numbers, 0 or above)."""
    # As Python's integer before the shift: NumPy 1 does not shift its own by one.
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def seeded_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, so that a seed gives the same numbers for every device."""
    return torch.Generator().manual_seed(seed)
