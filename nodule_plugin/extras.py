"""Packages that only some uses need: imported when something of them is asked for, named where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nodule_plugin.errors import InputError


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
            raise InputError(f"{package}: not installed; run pip install 'nodule-plugin[{self._extra}]'") from error
        return getattr(import_module(self._module), name)
