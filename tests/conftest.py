from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real LIDC-IDRI data (``lidc_idri/`` and ``lidc_nodule_crops/``); never part of the repository."""
    folder = Path(os.environ.get("NODULE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "lidc_nodule_crops" / "nodules.csv").is_file():
        pytest.skip(f"no real LIDC-IDRI data at {folder}; set NODULE_REAL_DATA to run this test")
    return folder.resolve()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """An empty folder that every user can enter; ``tmp_path`` is its owner's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
