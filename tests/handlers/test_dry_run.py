from __future__ import annotations

import sys

import pytest
from ignite.engine import Engine

from nodule_plugin.handlers import dry_run


def test_peak_memory_of_a_cpu_run_where_the_system_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state.device = "cpu"
    if sys.platform != "win32":
        assert 10 * 2**20 < dry_run._peak(engine) < 2**40
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert dry_run._peak(engine) is None
