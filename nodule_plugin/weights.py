"""Weights of networks: files that may be anything, loading that is whole or an error, saving, and their hash."""

from __future__ import annotations

import hashlib
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


def read_weights(file: str | Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Args:
        file: ``.safetensors``, or what ``torch.save`` wrote (nothing but tensors is unpickled): a state dict, or a
            checkpoint that holds one as "state_dict".
        what: as errors name it, such as "LPIPS weights".

    Raises:
        InputError: if there is no such file, or it is a git-lfs pointer, cut, damaged or something else.
    """
    check_no_pointer(file, what)
    try:
        if Path(file).suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise InputError(f"{what} {file}: cut, damaged or no weights ({one_line(error)}); get it anew") from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{what} {file}: holds something else than a network's weights by name; give its state dict")
    return dict(content)


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
    if any(faults.values()):
        said = "; ".join(f"{len(names)} weights {fault} ({some(names)})" for fault, names in faults.items() if names)
        raise InputError(f"{where}: not {of}: {said}")
    network.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)


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
