from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from warm import run_python


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script of ``scripts/benchmarks`` as Python finds it when it is run: its neighbours by their names."""
    monkeypatch.setattr(sys, "path", [str(repository / "scripts" / "benchmarks"), *sys.path])
    return importlib.import_module


@pytest.fixture
def warm_processes(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """``limits.Clock.run`` takes processes that have imported PyTorch already; its limits have tests of their own."""

    def run(
        clock: Any,
        command: list[str],
        seconds: float = float("inf"),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        done = run_python(command, folder or Path.cwd(), environment, min(seconds, clock.left, 600))
        if done.returncode != 0:
            raise script("limits").NotFinished(f"failed with status {done.returncode}: {done.stderr[-3000:]}")

    monkeypatch.setattr(script("limits").Clock, "run", run)
