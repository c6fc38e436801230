from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from study_material import SMALL, Material, write_material

from nodule_plugin.reader_study.design import DesignedStudy, write_study


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return write_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def original(material: Material, tmp_path_factory: pytest.TempPathFactory) -> DesignedStudy:
    """A small study, to be copied."""
    return write_study(tmp_path_factory.mktemp("original") / "study", material.datalist, material.generated, SMALL)


@pytest.fixture
def designed(original: DesignedStudy, tmp_path: Path) -> DesignedStudy:
    """A small study, new for each test."""
    study = Path(shutil.copytree(original.study, tmp_path / "study"))
    key, links = (Path(shutil.copy2(path, tmp_path)) for path in (original.key, original.links))
    return replace(original, study=study, key=key, links=links)
