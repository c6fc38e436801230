"""Checks of settings as they arrive from configurations and command lines."""

from __future__ import annotations

from pathlib import Path

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


def in_bundle(bundle_root: str, name: str) -> str:
    """The path of something that ships with the bundle.

    Args:
        bundle_root: the bundle's folder; the checkout, whose folder ``bundle`` it is, will do too, so that commands
            given from there work without ``--bundle_root bundle``.
        name: relative path within the bundle.

    Returns:
        The path in the checkout's ``bundle`` where only that exists, else the one in ``bundle_root``.
    """
    own, nested = Path(bundle_root, name), Path(bundle_root, "bundle", name)
    return str(nested if nested.exists() and not own.exists() else own)
