from __future__ import annotations

import pytest

from nodule_plugin.data.order import SampleKey, StepSampler, sample_seed
from nodule_plugin.errors import InputError


def epoch_of(sampler: StepSampler, epoch: int = 1, start: int = 0) -> list[list[SampleKey]]:
    sampler.set_position(epoch, start)
    return list(sampler)


@pytest.mark.parametrize(
    ("length", "batch_size", "accumulation"), [(10, 3, 1), (10, 3, 2), (12, 3, 2), (2, 5, 1), (7, 1, 3)]
)
def test_an_epoch_takes_every_sample_once(length: int, batch_size: int, accumulation: int) -> None:
    sampler = StepSampler(length, batch_size, accumulation)
    batches = epoch_of(sampler)
    assert sorted(key.item for batch in batches for key in batch) == list(range(length))
    assert len(batches) == len(sampler)
    assert max(len(batch) for batch in batches) <= batch_size
    ends = [number for number in range(1, len(batches) + 1) if sampler.ends_step(number)]
    assert len(ends) == sampler.steps_per_epoch
    assert ends[-1] == len(batches)


def steps_of(samplers: list[StepSampler]) -> list[set[tuple[int, int]]]:
    """(item, seed) of each optimizer step, of all processes together; filler left out."""
    steps: list[set[tuple[int, int]]] = [set()]
    epochs = [epoch_of(sampler) for sampler in samplers]
    for number, batches in enumerate(zip(*epochs, strict=True), start=1):
        steps[-1] |= {(key.item, key.seed) for batch in batches for key in batch if key.weight}
        if samplers[0].ends_step(number) and number < len(epochs[0]):
            steps.append(set())
    return steps


@pytest.mark.parametrize("length", [16, 17, 23])
def test_a_step_is_the_same_however_it_is_divided(length: int) -> None:
    whole = steps_of([StepSampler(length, 8)])
    assert steps_of([StepSampler(length, 2, accumulation_steps=4)]) == whole
    assert steps_of([StepSampler(length, 4, rank=rank, world_size=2) for rank in range(2)]) == whole
    assert steps_of([StepSampler(length, 1, 2, rank=rank, world_size=4) for rank in range(4)]) == whole


@pytest.mark.parametrize(("batch_size", "accumulation", "world"), [(4, 1, 1), (2, 3, 1), (2, 1, 2), (1, 2, 4)])
def test_the_weights_of_a_step_add_up_to_the_number_of_processes(batch_size, accumulation, world) -> None:
    samplers = [StepSampler(13, batch_size, accumulation, rank=rank, world_size=world) for rank in range(world)]
    total = 0.0
    for number, batches in enumerate(zip(*[epoch_of(sampler) for sampler in samplers], strict=True), start=1):
        assert all(batches), "a process without a batch would leave the others waiting"
        total += sum(key.weight for batch in batches for key in batch)
        if samplers[0].ends_step(number):
            assert total == pytest.approx(world)
            total = 0.0


def test_it_goes_on_where_it_was() -> None:
    sampler = StepSampler(10, 3, 2)
    assert epoch_of(sampler, epoch=4, start=2) == epoch_of(sampler, epoch=4)[2:]


def test_epochs_and_runs_differ() -> None:
    first = epoch_of(StepSampler(50, 5, seed=1), epoch=1)
    for seed, epoch in ((1, 2), (2, 1)):
        other = epoch_of(StepSampler(50, 5, seed=seed), epoch=epoch)
        order, others = ([key.item for batch in batches for key in batch] for batches in (first, other))
        assert order != others
        drawn, others_drawn = ({key.seed for batch in batches for key in batch} for batches in (first, other))
        assert not drawn & others_drawn
    assert first == epoch_of(StepSampler(50, 5, seed=1), epoch=1)


def test_seeds_differ_for_every_word() -> None:
    seeds = {sample_seed(run, epoch, item) for run in range(5) for epoch in range(10) for item in range(100)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"length": 0, "batch_size": 1}, "no item to train on"),
        ({"length": 3, "batch_size": 0}, "batch_size.*not 0"),
        ({"length": 3, "batch_size": 1, "accumulation_steps": 1.5}, r"accumulation_steps.*1\.5"),
    ],
)
def test_settings_out_of_range(settings: dict, culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        StepSampler(**settings)
