from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ct_hosts import write_host
from tiny_inpainter import make_tiny_inpainter
from tiny_sd import make_tiny_sd, make_tuned_weights

from nodule_plugin.insertion.grid import Grid


@pytest.fixture(scope="session")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tiny base model, a U-Net that differs from the base model's and a tiny inpainting model."""
    root = tmp_path_factory.mktemp("models") / "bundle"
    base = make_tiny_sd(root / "models" / "tiny", "v_prediction")
    make_tuned_weights(base, root / "models" / "model.pt")
    make_tiny_inpainter(root / "models" / "inpainter", Grid((2.0, 1.0, 1.0), (8, 16, 16), (-1024, 976)))
    (root / "configs").mkdir()
    for name in ("inference.json", "insert.json"):
        shutil.copy(repository / "bundle" / "configs" / name, root / "configs")
    return root


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom's chest as a DICOM series."""
    folder = tmp_path_factory.mktemp("studies") / "chest"
    write_host(folder)
    return folder
