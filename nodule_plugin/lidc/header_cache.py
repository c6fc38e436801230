"""What was read of DICOM headers, kept in a file between runs and while one is under way."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError
from nodule_plugin.files import write_text_atomically
from nodule_plugin.lidc.dicom_header import SliceHeader

_logger = logging.getLogger(__name__)
_VERSION = 2
_PER_SLICE = ("z", "position", "instance_number")
_SHARED = tuple(item.name for item in fields(SliceHeader) if item.name not in _PER_SLICE)
"""What the slices of a series usually have in common; a line of the file holds it once."""
_shared_values, _slice_values = attrgetter(*_SHARED), attrgetter(*_PER_SLICE)
_SEQUENCES = ("orientation", "spacing", "shape")

Key = tuple[str, int, int]
"""Path below the root, size in bytes, modification time in nanoseconds."""
Entry = SliceHeader | None
"""A slice, or None for what is not CT."""


class HeaderCache:
    """Headers by file, in a file of JSON lines to which what is read is added as it is read.

    The first line says which folder the file is about; each other line holds what was read at once. A run that is
    interrupted, even killed, has lost no line but the one being written, and the next run drops that.

    Attributes:
        entries: what earlier runs have read, for the files that are unchanged.
    """

    def __init__(self, file: Path | None, root: Path, keys: Collection[Key]) -> None:
        """Read the file.

        Args:
            file: None keeps nothing.
            root: the folder that is indexed.
            keys: its files as they are now.
        """
        self._file = file
        self._head = {"version": _VERSION, "root": str(root.resolve())}
        stored, self._sound = _load(file, self._head) if file is not None else ({}, True)
        self.entries = {key: stored[key] for key in keys if key in stored}
        self._sound &= len(self.entries) == len(stored)

    def add(self, entries: Mapping[Key, Entry]) -> None:
        """Keep some more.

        Raises:
            InputError: if the file cannot be written.
        """
        if self._file is None:
            return
        try:
            if not self._sound:
                kept = _line(self.entries) if self.entries else ""
                write_text_atomically(self._file, f"{json.dumps(self._head)}\n{kept}")
                self._sound = True
            if entries:
                _append(self._file, _line(entries).encode())
        except OSError as error:
            raise InputError(
                f"{self._file}: cannot be written ({error.strerror}); give another folder for it, or make room"
            ) from error


def _append(file: Path, line: bytes) -> None:
    """Add a line, whole or not at all."""
    with file.open("ab", buffering=0) as stream:
        size = stream.tell()
        try:
            written = 0
            while written < len(line):  # a disk that fills up takes a part first
                written += stream.write(line[written:]) or 0
        except OSError:
            os.ftruncate(stream.fileno(), size)
            raise


def _load(file: Path, head: Mapping[str, Any]) -> tuple[dict[Key, Entry], bool]:
    """What a file holds, and whether it holds nothing else."""
    entries: dict[Key, Entry] = {}
    if not file.is_file():
        return entries, False
    try:
        text = file.read_text(encoding="utf-8")
        first, *lines = text.splitlines()
        if json.loads(first) != head:
            return entries, False
        for line in lines:
            entries |= _entries(json.loads(line))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        _logger.info("%s: not whole (%s); what it lacks is read again", file, error)
        return entries, False
    return entries, text.endswith("\n")


def _line(entries: Mapping[Key, Entry]) -> str:
    # What a series' slices share is written once: LIDC-IDRI has 244,527 files.
    shared: dict[tuple[Any, ...], int] = {}
    files: list[list[Any]] = []
    for key, entry in entries.items():
        if entry is None:
            files.append([*key])
        else:
            files.append([*key, shared.setdefault(_shared_values(entry), len(shared)), *_slice_values(entry)])
    content = {"headers": [dict(zip(_SHARED, values)) for values in shared], "files": files}
    return json.dumps(content, separators=(",", ":")) + "\n"


def _entries(content: Mapping[str, Any]) -> dict[Key, Entry]:
    shared = [{**header, **{name: tuple(header[name]) for name in _SEQUENCES}} for header in content["headers"]]
    return {
        (name, size, time): SliceHeader(**shared[values[0]], **dict(zip(_PER_SLICE, values[1:]))) if values else None
        for name, size, time, *values in content["files"]
    }
