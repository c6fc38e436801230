from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_sd import make_tiny_sd, make_tuned_weights


@pytest.fixture(scope="session")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tiny base model and a U-Net that differs from the base model's."""
    root = tmp_path_factory.mktemp("models") / "bundle"
    base = make_tiny_sd(root / "models" / "tiny", "v_prediction")
    make_tuned_weights(base, root / "models" / "model.pt")
    (root / "configs").mkdir()
    shutil.copy(repository / "bundle" / "configs" / "inference.json", root / "configs")
    return root
