"""Checks of settings as they arrive from configurations and command lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def as_numbers(name: str, given: Any) -> list[float | int]:
    """The distinct numbers in a number, a list or a text, as a command line or a configuration gives them.

    Raises:
        InputError: if there is none, something else, or one twice.
    """
    values = re.split(r"[,\s]+", given.strip(" ,[]()")) if isinstance(given, str) else given
    if not isinstance(values, Sequence) or isinstance(values, str):
        values = [values]
    if not values:
        raise InputError(f"{name}: at least one number is needed")
    numbers = [_number(name, value) for value in values]
    for index, number in enumerate(numbers):
        if number in numbers[:index]:
            raise InputError(f"{name}: {number} is given twice")
    return numbers


def as_seeds(name: str, given: Any) -> list[int]:
    """:func:`as_numbers` that are seeds.

    Raises:
        InputError: if one is no whole number of 0 or above.
    """
    seeds = as_numbers(name, given)
    for seed in seeds:
        if seed < 0 or int(seed) != seed:
            raise InputError(f"{name}: a seed is a whole number of 0 or above, not {seed}")
    return [int(seed) for seed in seeds]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A setting that is a whole number from ``least`` on.

    Raises:
        InputError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: a whole number of {least} or above is needed, not {value!r}")
    return value


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


def _number(name: str, value: Any) -> float | int:
    if isinstance(value, str):
        try:
            value = int(value) if re.fullmatch(r"[+-]?\d+", value) else float(value)
        except ValueError as error:
            raise InputError(f"{name}: {value!r} is not a number; give such as 5 or 1,5,10") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}: {value!r} is not a number; give such as 5 or 1,5,10")
    if not abs(value) < 2**63:
        raise InputError(f"{name}: a number below 2**63 is needed, not {value}")
    return value
