from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodule_plugin.data.datalist import build_datalist, write_datalist
from nodule_plugin.data.sources import load_nodules

REPOSITORY = Path(__file__).resolve().parents[1]


SLOW = (
    *("benchmarks/", "bundle/", "deploy/", "downstream/", "export/", "small_models/", "test_docs_site.py"),
    "test_packaging.py",
    *("diffusion/test_iteration.py", "diffusion/test_training.py"),
    *("handlers/test_checkpoint.py", "handlers/test_evaluation.py", "handlers/test_validation.py"),
    *("insertion/test_command.py", "insertion/test_inpainter.py", "insertion/test_train_insertion.py"),
    *("metrics/test_parity.py", "privacy/test_audit.py", "privacy/test_training.py"),
)
"""Where tests train, run the bundle or a published network, or build what is shipped or the documentation's site.

``scripts/test.sh --quick`` leaves them out.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of :data:`SLOW`."""
    for item in items:
        if item.path.relative_to(REPOSITORY / "tests").as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


gc.disable()  # what is imported stays: searches for garbage in it take a fifth of the time of collecting tests


def pytest_collection_finish() -> None:
    """Leave what PyTorch, MONAI and pytest hold to the end out of the searches, a tenth of all time otherwise."""
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], 100)
    gc.enable()


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


@pytest.fixture(scope="session")
def phantom_datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data list of 24 phantoms; not to be written to."""
    folder = tmp_path_factory.mktemp("phantoms")
    nodules = load_nodules("phantom", phantom_dir=folder / "phantom", phantom_nodules=24)
    return write_datalist(build_datalist(nodules), folder / "datalist.json")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """An empty folder that every user can enter; ``tmp_path`` is its owner's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB that is full: its only file, ``other``, takes all the room."""
    with _mounted(tmp_path / "disk", "size=4m") as disk:
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
            while file.write(bytes(2**16)):
                pass
        yield disk


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that nobody, root included, can write into."""
    if os.geteuid() == 0:  # whom no file mode stops
        with _mounted(tmp_path / "disk", "ro") as disk:
            yield disk
    else:
        folder = tmp_path / "folder"
        folder.mkdir(mode=0o555)
        yield folder


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"a file system cannot be mounted for this test: {error}")
    if done.returncode != 0:
        pytest.skip(f"a file system cannot be mounted for this test: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
