"""Files that a reader never meets half of, that outlive a power cut, and that others wrote."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError

LARGEST_JSON = 2**28
"""Bytes of the largest JSON file that is read: a data list of all of LIDC-IDRI has a hundredth of them."""
_TEMPORARY = re.compile(r"\.(?P<host>.+)-(?P<process>\d+)\.part\..+")
_ABANDONED_S = 24 * 3600
"""After so long without a change a temporary file is nobody's, whoever wrote it."""


def temporary_name(path: Path) -> Path:
    """A new hidden name beside ``path``, with the same suffixes, that tells which process is writing there."""
    return path.with_name(f".{platform.node()}-{os.getpid()}.part.{secrets.token_hex(4)}.{path.name}")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left under temporary names.

    Those are processes of this machine that are no more. Whether another machine's process (or one of a container with
    the same name) is at work cannot be asked: its files are removed once nobody has touched them for a day.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if (name := _TEMPORARY.fullmatch(path.name)) is None:
            continue
        with suppress(OSError):  # another process has removed it; or it may not be removed, which harms nobody
            gone = name["host"] == platform.node() and not _is_running(int(name["process"]))
            if gone or _is_abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere there is no harmless signal to ask with
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _is_abandoned(path: Path) -> bool:
    state = path.lstat()  # of a folder the time says nothing about the files below it
    return stat.S_ISREG(state.st_mode) and time.time() - state.st_mtime > _ABANDONED_S


@cache
def _remove_leftovers_once(folder: Path) -> None:
    with suppress(OSError):  # a folder that may be written to but not listed
        remove_leftovers(folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of ``path`` when the block ends without an error.

    The temporary file is a hidden one beside ``path``, with the same suffixes; an older file stays until the end and
    hands on its permissions. It is made before the block begins, never through a link that somebody laid there, and is
    on the disk, not only in memory, before it takes the older one's place. The folder is made where there is none;
    where there is one, what killed processes left in it is removed.

    Raises:
        OSError: if that is not possible; it names ``path``. Whatever is raised, nothing is left behind; where the
            process is killed the temporary file stays until :func:`remove_leftovers`.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers_once(path.parent.absolute())
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        _create(temporary, mode)
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # gone already, or the disk has become read-only
            temporary.unlink()


def _create(path: Path, mode: int | None) -> None:
    """Make a new empty file that this process may write to, with no more rights for others than ``mode`` gives."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(path, flags, 0o666 if mode is None else mode | stat.S_IWUSR))  # less what the umask takes away


def _sync(path: Path) -> None:
    """Wait until a file, or every file in a folder, is on the disk: errors of a full one may come only then."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """The same for the names in a folder, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``output`` when all is written, and vanishes on any error.

    Raises:
        InputError: if ``output`` is there and not an empty folder, is where the process stands, or cannot be written.
    """
    output = output.absolute()  # "." has no name of its own
    if output.exists() and output.samefile("."):
        raise InputError(f"{output}: the current folder cannot be replaced; name a new one below it")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: already there and not an empty folder; choose another output folder or remove it")
    _remove_leftovers_once(output.parent)
    partial = temporary_name(output)
    try:
        partial.mkdir(parents=True)
        yield partial
        _sync(partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
        _sync_folder(output.parent)
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


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any, indent: int = 4) -> None:
    """Write a JSON file, whole or not at all; see :func:`replacing`."""
    write_text_atomically(path, json.dumps(content, indent=indent) + "\n")


def write_files(contents: Mapping[str, bytes], folder: Path, setting: str = "output_dir") -> list[Path]:
    """Write files of these names, all or none; older ones are replaced.

    Args:
        contents: what each file holds; they take their places in this order.
        folder: made if absent.
        setting: what the user calls the folder, for the error.

    Raises:
        InputError: if the folder cannot be written.
    """
    try:
        with ExitStack() as whole:  # which lets the last file in go first
            for name in reversed(list(contents)):
                whole.enter_context(replacing(folder / name)).write_bytes(contents[name])
    except OSError as error:
        raise InputError(f"{setting} {folder}: cannot be written ({error.strerror}); choose another folder") from error
    return [folder / name for name in contents]


def read_json(path: Path, remedy: str = "correct the file") -> Any:
    """The content of a JSON file that somebody else may have written.

    Args:
        path: UTF-8, with or without a byte order mark.
        remedy: what helps where it cannot be used, for the error.

    Raises:
        InputError: if it is missing, larger than :data:`LARGEST_JSON`, not JSON, nested too deeply, or says a thing
            twice.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return content


def visible_files(folder: Path) -> list[Path]:
    """:func:`visible_entries` as paths."""
    return [Path(entry.path) for entry in visible_entries(folder)]


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, but nothing hidden.

    Hidden are the leavings of file managers, such as macOS's ``._a.png`` (which has the ending of a picture and is
    none), and those of interrupted programs.

    Raises:
        OSError: if the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=attrgetter("name"))
