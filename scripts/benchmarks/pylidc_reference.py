"""pylidc made importable: the one place with its repair, for the benchmark and the tests that compare against it.

pylidc 0.2.3 asks ``pkg_resources`` (gone from setuptools since 82) for the path of its database and uses the aliases
``np.int`` and ``np.float`` (gone since NumPy 1.24). The package itself never imports pylidc.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def import_pylidc() -> ModuleType:
    """Import pylidc with what it misses put in place.

    Raises:
        ImportError: if pylidc or something it needs is not installed.
    """
    aliases: Any = np
    aliases.int, aliases.float = int, float
    if importlib.util.find_spec("pkg_resources") is None:
        sys.modules.setdefault("pkg_resources", _pkg_resources())
    with warnings.catch_warnings():
        # SQLAlchemy and SciPy tell pylidc's authors, not us, that their names have moved.
        warnings.simplefilter("ignore", DeprecationWarning)
        import pylidc
    return pylidc


def _pkg_resources() -> Any:
    """As much of pkg_resources as pylidc uses."""
    module: Any = types.ModuleType("pkg_resources")

    def resource_filename(package: str, name: str) -> str:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ImportError(f"{package} is not installed")
        return str(Path(spec.origin).parent / name)

    module.resource_filename = resource_filename
    return module


def membership_digest(clusters_by_scan: Iterable[Iterable[Iterable[int]]]) -> str:
    """SHA-256 of which annotations form a nodule.

    Args:
        clusters_by_scan: for each scan, in the order of the database, the database ids of each nodule's annotations.

    Returns:
        Hexadecimal digest, the same whatever the order of nodules and of annotations within them.
    """
    digest = hashlib.sha256()
    for clusters in clusters_by_scan:
        digest.update(repr(sorted(sorted(ids) for ids in clusters)).encode())
    return digest.hexdigest()
