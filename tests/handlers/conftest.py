from __future__ import annotations

from pathlib import Path

import pytest
from tiny_clip import make_tiny_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small CLIP with random weights in open_clip's folder layout."""
    return make_tiny_clip(tmp_path_factory.mktemp("clip") / "model")
