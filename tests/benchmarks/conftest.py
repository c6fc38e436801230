from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script of ``scripts/benchmarks`` as Python finds it when it is run: its neighbours by their names."""
    monkeypatch.setattr(sys, "path", [str(repository / "scripts" / "benchmarks"), *sys.path])
    return importlib.import_module
