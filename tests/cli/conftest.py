from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle(repository: Path) -> Path:
    return repository / "bundle"
