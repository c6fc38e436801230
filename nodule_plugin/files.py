"""Writing files so that a reader never meets half of one, and reading what others wrote."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError

LARGEST_JSON = 2**28
"""Bytes of the largest JSON file that is read: a data list of all of LIDC-IDRI has a hundredth of them."""
_TEMPORARY = re.compile(r"\.(?P<host>.+)-(?P<process>\d+)\.part\..+")


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path``, with the same suffixes, that tells which process is writing there."""
    return path.with_name(f".{platform.node()}-{os.getpid()}.part.{path.name}")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that are no more, since they were killed, left under temporary names."""
    if os.name != "posix" or not folder.is_dir():  # elsewhere there is no harmless signal to ask with
        return
    for path in folder.iterdir():
        name = _TEMPORARY.fullmatch(path.name)
        if name is None or name["host"] != platform.node() or _is_running(int(name["process"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of ``path`` when the block ends without an error.

    The temporary file is a hidden one beside ``path``, with the same suffixes; an older file stays until the end. The
    folder is made where there is none.

    Raises:
        OSError: if that is not possible. Whatever is raised, nothing is left behind; where the process is killed the
            temporary file stays until :func:`remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``output`` when all is written, and vanishes on any error.

    Raises:
        InputError: if ``output`` is there and not an empty folder, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: already there and not an empty folder; choose another output folder or remove it")
    remove_leftovers(output.parent)
    partial = temporary_name(output)
    try:
        partial.mkdir(parents=True)
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # pydicom wraps it
        raise InputError(
            f"{output}: cannot be written ({cause.strerror or cause}); choose another output folder, or make room"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, remedy: str = "correct the file") -> Any:
    """The content of a JSON file that somebody else may have written.

    Args:
        path: UTF-8, with or without a byte order mark.
        remedy: what helps where it cannot be used, for the error.

    Raises:
        InputError: if it is missing, larger than :data:`LARGEST_JSON`, not JSON, or nested too deeply.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from error


def visible_files(folder: Path) -> list[Path]:
    """What lies in a folder, by name, but nothing hidden.

    Hidden are the leavings of file managers, such as macOS's ``._a.png`` (which has the ending of a picture and is
    none), and those of interrupted programs.

    Raises:
        OSError: if the folder cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
