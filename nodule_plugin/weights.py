"""Weights of networks: files that may be anything, loading that is whole or an error, saving, and their hash."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing

UNREADABLE = (
    *(OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError),
    *(UnpicklingError, EOFError, SafetensorError, MemoryError),
)
"""What libraries raise at a file of weights that is cut, damaged or of another kind."""
NAMED = 3
"""Weights that an error names."""
_POINTER = b"version https://git-lfs"
_OTHER_FILES = {
    _POINTER: "a git-lfs pointer in the place of the weights; run git lfs pull, or download the file",
    b"GGUF": "a GGUF file; take the model's .safetensors",
    b"<": "a web page in the place of the weights; download the file, which may need a login",
}
"""How files begin that are often found in the place of weights, and what helps."""


def read_weights(file: str | Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; see :func:`read_content`.

    Raises:
        InputError: also if it holds something else.
    """
    content = read_content(file, what)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{what} {file}: holds something else than a network's weights by name; give its state dict")
    return dict(content)


def read_content(file: str | Path, what: str) -> Any:
    """What a file of weights holds, on the CPU, mapped into memory where its format lets.

    Args:
        file: safetensors, or what ``torch.save`` wrote (nothing but tensors and plain values is unpickled), told apart
            by how it begins. Of a checkpoint that holds a state dict as "state_dict" that is what it holds.
        what: as errors name it, such as "LPIPS weights".

    Raises:
        InputError: if there is no such file, or it is a git-lfs pointer, cut, damaged or something else.
    """
    try:
        content = _load(Path(file))
    except OSError as error:
        reason = damage(file) if error.filename is None else f"cannot be read ({error.strerror}); correct the path"
        raise InputError(f"{what} {file}: {reason}") from error
    except UNREADABLE as error:
        raise InputError(f"{what} {file}: {damage(file)}") from error
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    return content


def damage(file: str | Path) -> str | None:
    """What is wrong with a file of weights and what helps; None where it can be read.

    Raises:
        OSError: if there is no such file.
    """
    with Path(file).open("rb") as opened:
        start = opened.read(64).lstrip()
    for other, meaning in _OTHER_FILES.items():
        if start.startswith(other):
            return meaning
    try:
        _load(Path(file))
    except UNREADABLE as error:
        # torch's own message recommends to let the file run whatever it holds.
        kind = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, UnpicklingError) else None
        if kind is not None:
            return (
                f"holds {kind[1]} beside tensors, and nothing in a file is executed; take the model's .safetensors, or "
                "where you trust the file load it yourself and save its state dict alone"
            )
        reason = "no archive of tensors" if "weights_only" in str(error) else one_line(error)
        return f"cut, damaged or no weights ({reason}); get it anew"
    return None


def _load(file: Path) -> Any:
    with file.open("rb") as opened:
        start = opened.read(9)
    if start[8:] == b"{":  # safetensors: the length of its header in 8 bytes, and the header, which is JSON
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def check_no_pointer(file: str | Path, what: str) -> None:
    """Refuse a file that is absent, or that git-lfs left in the place of the weights.

    Raises:
        InputError: naming it.
    """
    try:
        with Path(file).open("rb") as opened:
            start = opened.read(len(_POINTER))
    except OSError as error:
        raise InputError(f"{what} {file}: cannot be read ({error.strerror}); correct the path") from error
    if start == _POINTER:
        raise InputError(f"{what} {file}: a git-lfs pointer in the place of the weights; run git lfs pull")


def save_tensors(content: Any, path: Path) -> None:
    """``torch.save``, whole or not at all; equal contents give equal files, whoever writes them under whatever name.

    Raises:
        OSError: see :func:`replacing`.
    """
    # Given a name, torch writes it into the archive, and with it this machine's.
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own error says nothing of the disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_strictly(
    network: torch.nn.Module, weights: Mapping[str, Tensor], where: str, of: str, spare: Collection[str] = ()
) -> None:
    """Load weights by name: all that the network has, and no others.

    Args:
        network: to load into. The counters of batch normalisation, which old files lack, may be missing.
        weights: by name.
        where: the file, as errors name it.
        of: what the weights should be, as errors name it, such as "torchvision's state dict of alexnet".
        spare: names that are passed over, such as those of a classifier that was taken off.

    Raises:
        InputError: if a weight is missing, unexpected or of another shape; the first names of each are given.
    """
    wanted = network.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in weights if name not in wanted and name not in spare],
        "of another shape": [n for n in wanted if n in weights and wanted[n].shape != weights[n].shape],
    }
    refuse_faults(faults, where, of)
    network.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)


def refuse_faults(faults: Mapping[str, Sequence[str]], where: str, of: str) -> None:
    """Refuse weights that do not all arrive, or not all where they belong: random ones would stay in their place.

    Args:
        faults: such as "missing" -> names of weights.
        where, of: see :func:`load_strictly`.

    Raises:
        InputError: if there is a fault, with the first names of each.
    """
    if any(faults.values()):
        said = "; ".join(f"{len(names)} weights {fault} ({some(names)})" for fault, names in faults.items() if names)
        raise InputError(f"{where}: not {of}: {said}")


def some(names: Sequence[str]) -> str:
    """The first of several names, and whether there are more."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def one_line(error: BaseException, most: int = 240) -> str:
    """A library's message as one line, cut where it lists on and on."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= most else f"{words[:most]} ..."


def weights_sha256(weights: torch.nn.Module | Mapping[str, Tensor], *settings: object) -> str:
    """SHA-256 of a network's weights (names in order, types, shapes, bytes) and of settings that go with them."""
    state = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    digest = hashlib.sha256(repr(settings).encode() if settings else b"")
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as ``sha256sum`` prints it; never more than a block in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
