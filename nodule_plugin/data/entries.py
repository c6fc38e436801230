"""What entries of data lists, manifests and records of runs must hold before a file is read, written or removed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError

_FILE_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_LONGEST = 200
LIMITS: dict[str, tuple[float, float]] = {
    "roi_mm": (1e-3, 1000),
    "diameter_mm": (1e-3, 1000),
    "spacing": (1e-3, 100),
    "spacing_mm": (1e-6, 1000),
    "size": (1, 2**14),
    "centre": (-1e5, 1e5),
    "slice_index": (0, 1e5),
    "padding": (0, 1),
    "guidance_scale": (0, 1e6),
    "seed": (0, 2**63 - 1),
}
"""Smallest and largest value of a field, or of each number in it: generous, and far from what would fill a memory."""


def file_safe_id(where: object, value: Any) -> str:
    """An id that files are named after.

    Raises:
        InputError: unless it is a text of up to 200 letters, digits, dots, dashes and underscores that starts with none
            of dots and dashes; ``where`` says whose it is.
    """
    if not isinstance(value, str) or not _FILE_SAFE.fullmatch(value):
        raise InputError(f"{where}: field 'id': {value!r} cannot name a file; correct it, or write the file anew")
    return value


def readable_id(where: object, value: Any) -> str:
    """An id that is only shown: any text of up to 200 printable characters.

    Raises:
        InputError: if it is another thing.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST or not value.isprintable():
        raise InputError(f"{where}: field 'id': {value!r} is no text of up to {_LONGEST} printable characters")
    return value


def file_below(where: object, field: str, root: Path, name: Any) -> Path:
    """The file that an entry names, which must be one below its folder.

    Raises:
        InputError: if ``name`` is no relative path, leads out of ``root``, or there is no such file.
    """
    path = Path(os.path.normpath(name) if isinstance(name, str) and "\0" not in name else "..")
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: field {field!r}: {name!r} is no path below {root}; correct it")
    if not (file := root / path).is_file():
        raise InputError(f"{where}: field {field!r}: there is no file {file}; correct it, or give the images' folder")
    return file


def check_numbers(where: object, entry: Mapping[str, Any]) -> None:
    """Check the fields of an entry that :data:`LIMITS` names; what is missing or None is not looked at.

    Raises:
        InputError: naming the first number that is none, not finite or out of its limits.
    """
    for field, (least, most) in LIMITS.items():
        given = entry.get(field)
        for number in given if isinstance(given, (list, tuple)) else [given] if given is not None else []:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= most:
                raise InputError(f"{where}: field {field!r}: {given!r} is not from {least:g} to {most:g}; correct it")
