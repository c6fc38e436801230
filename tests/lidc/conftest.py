from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_BENCHMARKS = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"


@pytest.fixture(scope="session")
def pylidc_reference() -> ModuleType:
    """The benchmarks' module with pylidc's repair."""
    spec = importlib.util.spec_from_file_location("pylidc_reference", _BENCHMARKS / "pylidc_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pylidc(pylidc_reference: ModuleType) -> ModuleType:
    """pylidc itself, repaired; skips where it cannot be imported."""
    try:
        return pylidc_reference.import_pylidc()
    except ImportError as error:
        pytest.skip(f"pylidc cannot be imported: {error}")


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    """What pylidc gave for the whole database, by scripts/benchmarks/lidc_index.py."""
    return json.loads((Path(__file__).parent / "pylidc_reference.json").read_text())
