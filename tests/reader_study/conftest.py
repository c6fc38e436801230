from __future__ import annotations

from pathlib import Path

import pytest
from study_material import SMALL, Material, write_material

from nodule_plugin.reader_study.design import DesignedStudy, write_study


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return write_material(tmp_path_factory.mktemp("material"))


@pytest.fixture
def designed(material: Material, tmp_path: Path) -> DesignedStudy:
    """A small study, new for each test."""
    return write_study(tmp_path / "study", material.datalist, material.generated, SMALL)
