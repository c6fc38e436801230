"""Packages that only some uses need: imported when something of them is asked for, named where they are missing."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from nodule_plugin.errors import InputError


def check_installed(package: str, extra: str, otherwise: str = "") -> None:
    """Refuse to begin what will need a package that is not installed.

    Args:
        package: its name as it is imported.
        extra: of pyproject.toml, which installs it.
        otherwise: what else helps.

    Raises:
        InputError: if it is missing.
    """
    if find_spec(package) is None:
        raise InputError(_missing(package, extra) + otherwise)


def _missing(package: str, extra: str) -> str:
    return f"{package}: not installed; run pip install 'nodule-plugin[{extra}]'"


class Extra:
    """A module of a package that one of this project's extras installs, imported at its first use.

    Args:
        module: its full name.
        extra: of pyproject.toml.
    """

    def __init__(self, module: str, extra: str) -> None:
        self._module, self._extra = module, extra

    def __getattr__(self, name: str) -> Any:
        package = self._module.partition(".")[0]
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:  # it is there, and lacks something itself
                raise
            raise InputError(_missing(package, self._extra)) from error
        return getattr(import_module(self._module), name)
