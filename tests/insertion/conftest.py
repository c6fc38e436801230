from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ct_hosts import FINDINGS, round_crops, write_host

from nodule_plugin.insertion.lesions import read_lesions
from nodule_plugin.insertion.run import Insertion
from nodule_plugin.insertion.sources import CopyPaste

PLACE = (30.0, 12.0, 2.0)
"""x, y, z of a point in the left lung of :func:`ct_hosts.write_host`'s chest, mm."""
Insert = Callable[..., Path]


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return round_crops(tmp_path_factory.mktemp("crops") / "crops")


@pytest.fixture(scope="session")
def insert(crops: Path) -> Insert:
    """Put a round nodule of 10 mm into a series, by copy and paste."""

    def run(host: Path, output: Path, seeds: tuple[int, ...] = (0,), lesions: Any = None, **settings: Any) -> Path:
        source = CopyPaste.from_folder(crops)
        wanted = lesions or read_lesions(position=PLACE, diameter_mm=10, findings=FINDINGS)
        insertion = Insertion(source, source.draw_mask, **{"created": "2026-01-31T12:00:00", **settings})
        return insertion(host, wanted, seeds, output)

    return run


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "series"
    write_host(folder)
    return folder


@pytest.fixture(scope="session")
def inserted(host: Path, insert: Insert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nodule in :func:`host`: two seeds, nobody's patient."""
    return insert(host, tmp_path_factory.mktemp("inserted") / "out", seeds=(0, 1))


@pytest.fixture(scope="session")
def kept(host: Path, insert: Insert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the host's own study."""
    from nodule_plugin.insertion.derived import Belonging

    return insert(host, tmp_path_factory.mktemp("kept") / "out", belonging=Belonging("keep", "host"))
