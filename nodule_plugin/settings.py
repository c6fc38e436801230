"""Checks of settings as they arrive from configurations and command lines."""

from __future__ import annotations

from nodule_plugin.errors import InputError


def as_flag(name: str, value: bool | str) -> bool:
    """A setting that is true or false; a command line gives these as texts, and "false" would count as true.

    Raises:
        InputError: if it is neither.
    """
    flag = {"true": True, "false": False}.get(str(value).lower())
    if flag is None:
        raise InputError(f"{name}: true or false is needed, not {value!r}")
    return flag
