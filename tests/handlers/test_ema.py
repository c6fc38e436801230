from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from nodule_plugin.errors import InputError
from nodule_plugin.handlers.ema import ExponentialMovingAverage


def test_the_average_follows_the_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    ema = ExponentialMovingAverage(network, 0.5)
    nn.init.constant_(network.weight, 1.0)
    ema(Engine(lambda engine, batch: None))
    assert ema.model.weight.item() == pytest.approx(1 - 2 / 11)  # the first step keeps (1 + 1) / (10 + 1)
    for _ in range(60):
        ema(Engine(lambda engine, batch: None))
    assert ema.model.weight.item() == pytest.approx(1.0)


def test_a_resumed_average_remembers_how_many_steps_it_has_seen() -> None:
    network = nn.Linear(1, 1, bias=False)
    ema, resumed = (ExponentialMovingAverage(network, 0.99) for _ in range(2))
    nn.init.constant_(ema.model.weight, 3.0)
    resumed.load_state_dict({**ema.state_dict(), "steps": 7})
    nn.init.constant_(network.weight, 1.0)
    resumed(Engine(lambda engine, batch: None))
    assert resumed.model.weight.item() == pytest.approx(2.0)  # the eighth step keeps (1 + 8) / (10 + 8)


def test_without_decay_there_is_no_second_network() -> None:
    network = nn.Linear(1, 1)
    ema = ExponentialMovingAverage(network, None)
    assert ema.model is network
    assert ema.state_dict()["model"] == {}


def test_buffers_are_copied() -> None:
    network = nn.BatchNorm1d(2)
    ema = ExponentialMovingAverage(network, 0.9)
    network(torch.randn(8, 2) + 5)
    ema(Engine(lambda engine, batch: None))
    assert torch.equal(ema.model.running_mean, network.running_mean)


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="ema_decay"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)
