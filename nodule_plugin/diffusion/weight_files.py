"""Files of weights as they come from elsewhere: their tensors, or one line that says what is wrong with them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nodule_plugin.errors import InputError

SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
"""What files of weights are called."""

READING_ERRORS = (OSError, ValueError, RuntimeError, EOFError, LookupError, TypeError, UnpicklingError, SafetensorError)
"""What torch, safetensors, diffusers and transformers raise on files that are damaged or of another kind."""

_OTHER_FILES = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself; run 'git lfs pull', or download the file"),
    (b"GGUF", "a GGUF file; take the model's .safetensors"),
    (b"<", "a web page, not the file itself; download the file, which may need a login"),
)


def read_tensors(setting: str, path: Path) -> dict[str, Any]:
    """What a file of weights holds, on the CPU and memory-mapped where its format lets; nothing in it is executed.

    Args:
        setting: what the user knows the file by.
        path: safetensors or an archive of torch, told apart by content.

    Returns:
        Name -> tensor; beside the tensors whatever plain values an archive of torch holds. What PyTorch Lightning
        keeps under "state_dict" is taken out.

    Raises:
        InputError: if the file is damaged, or holds more than tensors and plain values.
    """
    try:
        content = _load(path)
    except READING_ERRORS as error:
        raise InputError(
            f"{setting}: {path} cannot be read as a state dict: {damage(path) or one_line(error)}"
        ) from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(f"{setting}: {path} holds a {type(content).__name__}, not a state dict of named tensors")
    return content


def damage(path: Path) -> str | None:
    """What is wrong with a file of weights and what helps, or None where its tensors can be read."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
        for start, meaning in _OTHER_FILES:
            if head.lstrip().startswith(start):
                return meaning
        if not head.strip(b"\0"):
            return "empty; get the file anew"
        if not (head.startswith((b"PK", b"\x80")) or head[8:9] == b"{"):
            return f"no file of weights: it begins with {head[:12]!r}; get it anew, or give another"
        _load(path)
    except UnpicklingError as error:
        if kind := re.search(r"GLOBAL (\S+)", str(error)):
            return (
                f"it holds {kind[1]} beside tensors, and nothing in a file is executed; take the model's .safetensors, "
                "or where you trust the file load it yourself and save its state dict alone"
            )
        return "cut, damaged or holding more than tensors; get it anew, or take the model's .safetensors"
    except READING_ERRORS as error:
        return f"cut or damaged ({one_line(error)}); get it anew"
    return None


def one_line(error: BaseException, length: int = 240) -> str:
    """The message of an error of a library on one line of at most ``length`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " ..."


def first_names(names: Iterable[str]) -> str:
    """The first three of some names in order, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest


def refuse_other_keys(setting: str, where: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Weights that do not all arrive leave random ones behind.

    Raises:
        InputError: if there is a missing or an unexpected key.
    """
    missing, unexpected = list(missing), list(unexpected)
    faults = [
        f"{len(names)} {kind} ({first_names(names)})"
        for names, kind in ((missing, "weights are missing"), (unexpected, "have no place in the network"))
        if names
    ]
    if faults:
        raise InputError(f"{setting}: {where}: {', '.join(faults)}; get the model anew, or save it with its own names")


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":  # a safetensors file begins with the length of its header, 8 bytes, and JSON
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
