"""A mark in voxels that are stored as whole numbers: which of them are even and which are odd.

An inserted nodule holds too few pixels for a mark in the noise that it is made from, and a detector does not know its
place. But the files of a CT series keep every number. Where the nodule changed voxels they are rounded to even or odd
as a key's pattern says ("LSB matching": Sharp T, "An implementation of key-based digital signal steganography",
Information Hiding 2001). The pattern repeats, so that it is found in any part of a volume, which is searched in small
windows. The mark lasts as long as voxels are copied, whatever becomes of their headers; whoever resamples them, brings
them to eight bits or compresses them with loss removes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from nodule_plugin.provenance.codebook import PAYLOAD_DIGITS, PUBLIC, MarkKey, log10_p, payload_of, read_key, signs
from nodule_plugin.provenance.detection import READABLE, THRESHOLD, Detection
from nodule_plugin.settings import as_flag

SCHEME = "nodule-plugin voxels 1"
"""Name and version of pattern and windows; marks of one are not found by another."""
TILE = (4, 32, 32)
"""Slices, rows and columns after which the pattern repeats."""
_SITES = 4 * 32 * 32
_WINDOW, _STEP = (4, 16, 16), (2, 8, 8)
"""Slices, rows and columns of a window, at most the tile's; and from one to the next."""
_LEAST = 8
"""Rows and columns that can be judged."""
_WAYS = 2
"""The pattern and its opposite: an odd intercept of Hounsfield units turns even to odd."""


@dataclass(frozen=True)
class VoxelMark:
    """Marks what a run changes in a series.

    Attributes:
        key: of the mark.
        payload: what it says, see :func:`nodule_plugin.provenance.codebook.payload_of`.
    """

    key: MarkKey
    payload: str

    def odd(self, shape: Sequence[int]) -> np.ndarray:
        """(slices, rows, columns) bool: which voxels of a volume are to be odd."""
        places = [np.arange(count) % period for count, period in zip(shape, TILE)]
        return (pattern(self.key, self.payload) > 0).numpy()[np.ix_(*places)]

    @property
    def described(self) -> dict[str, Any]:
        """What manifests say of it; the key's secret is not in it."""
        return {"scheme": SCHEME, "key": self.key.name, "payload": self.payload}


def voxel_mark(mark: bool | str, mark_key: str | Path | None, weights_sha256: str) -> VoxelMark | None:
    """The mark that a run's settings ask for; None where none is wanted.

    Args:
        mark: whether one is wanted.
        mark_key: see :func:`nodule_plugin.provenance.codebook.read_key`.
        weights_sha256: of the model.

    Raises:
        InputError: if the key's file cannot be used.
    """
    key = read_key(mark_key)
    return VoxelMark(key, payload_of(weights_sha256)) if as_flag("mark", mark) else None


def pattern(key: MarkKey, payload: str) -> Tensor:
    """:data:`TILE` signs: on every other site (a chessboard's black) the mark's, on the others the payload's."""
    return torch.where(_black(), _mark_signs(key), _payload_signs(key)[int(payload, 16)])


def detect_in_voxels(volume: np.ndarray, key: MarkKey = PUBLIC) -> Detection:
    """Look for a key's mark in a volume, which may be a part of a larger one, at every place.

    Args:
        volume: (slices, rows, columns) of one or more, in the orientation of
            :data:`nodule_plugin.data.orientation.SHOWN`; Hounsfield units.
        key: the key.

    Returns:
        The likeliest finding, its p-value corrected for all windows and shifts of the pattern. Nothing can be said of
        values that are not whole or all one, or of a few columns.
    """
    if min(volume.shape[1:]) < _LEAST or not np.ptp(volume) or not (volume == np.rint(volume)).all():
        return Detection(0.0, None, key.name, possible=False)
    odd = torch.from_numpy(np.where(volume.astype(np.int64) % 2, 1.0, -1.0).astype(np.float32))
    tried = _WAYS * _SITES * math.prod(_counts(odd.shape))
    # A whole series has the pattern where it was laid; that is one of the shifts, and quick to look at.
    for look in (_as_laid, _in_all_shifts):
        likeliest = look(odd, _mark_signs(key) * _black())
        chance = log10_p(likeliest.agreement, tried)
        if chance < THRESHOLD:
            break
    return Detection(chance, _payload(likeliest, key), key.name, inserted=True)


@dataclass(frozen=True)
class _Likeliest:
    """The window that agrees best with a pattern.

    Attributes:
        agreement: in units of chance.
        window: TILE; 1 odd and -1 even from the tile's beginning, 0 beyond the window.
        shift: of the pattern in it: slices, rows, columns.
    """

    agreement: float
    window: Tensor
    shift: tuple[int, ...]


def _as_laid(odd: Tensor, signs: Tensor) -> _Likeliest:
    """Where a pattern begins with the volume."""
    tiles = [-(-count // period) for count, period in zip(odd.shape, TILE)]
    laid = signs.repeat(tiles)[tuple(map(slice, odd.shape))]
    size = _size(odd.shape)
    sums = avg_pool3d((odd * laid)[None], size, _STEP)[0].abs()
    place = [int(at) * step for at, step in zip(np.unravel_index(int(sums.argmax()), sums.shape), _STEP)]
    window = torch.zeros(TILE)
    window[tuple(map(slice, size))] = odd[tuple(slice(at, at + length) for at, length in zip(place, size))]
    agreement = float(sums.max()) * math.prod(size)
    return _Likeliest(_in_units(agreement, size), window, tuple(-at % period for at, period in zip(place, TILE)))


def _in_all_shifts(odd: Tensor, signs: Tensor) -> _Likeliest:
    """Wherever a pattern begins, as in a part of a volume."""
    spectrum = torch.fft.rfftn(signs).conj()
    best = _Likeliest(0.0, torch.zeros(TILE), (0, 0, 0))
    for windows in _windows(odd):
        sums = torch.fft.irfftn(torch.fft.rfftn(windows, dim=(1, 2, 3)) * spectrum, s=TILE, dim=(1, 2, 3)).abs()
        agreement = _in_units(float(sums.max()), _size(odd.shape))
        if agreement > best.agreement:
            window, *shift = (int(at) for at in np.unravel_index(int(sums.argmax()), sums.shape))
            best = _Likeliest(agreement, windows[window].clone(), tuple(shift))
    return best


def _in_units(agreement: float, size: Sequence[int]) -> float:
    """A sum over half of a window's sites, which are the mark's, in units of chance."""
    return agreement / math.sqrt(math.prod(size) / 2)


def _size(shape: Sequence[int]) -> tuple[int, int, int]:
    """Of the windows. An even number of columns has as many black sites as white ones, however the pattern lies."""
    slices, rows, columns = (min(most, count) for most, count in zip(_WINDOW, shape))
    return slices, rows, columns // 2 * 2


def _counts(shape: Sequence[int]) -> list[int]:
    """Windows along each axis."""
    return [(count - length) // step + 1 for count, length, step in zip(shape, _size(shape), _STEP)]


def _windows(odd: Tensor) -> Iterator[Tensor]:
    """(n, *TILE) windows of (slices, rows, columns), each laid at a tile's beginning, 0 beyond."""
    size = _size(odd.shape)
    views = odd
    for axis, (length, step) in enumerate(zip(size, _STEP)):
        views = views.unfold(axis, length, step)
    for row in views:
        laid = torch.zeros(row.shape[0] * row.shape[1], *TILE)
        laid[:, : size[0], : size[1], : size[2]] = row.flatten(0, 1)
        yield laid


def _payload(likeliest: _Likeliest, key: MarkKey) -> str | None:
    """What the white sites say, where that can be told."""
    laid = torch.roll(likeliest.window, [-at for at in likeliest.shift], (0, 1, 2)) * ~_black()
    said = (laid.flatten() @ _payload_signs(key).flatten(1).T).abs() / laid.norm().clamp_min(1.0)
    readable = log10_p(float(said.max()), _WAYS * len(said)) < READABLE
    return f"{int(said.argmax()):0{PAYLOAD_DIGITS}x}" if readable else None


@lru_cache(maxsize=1)
def _black() -> Tensor:
    """:data:`TILE` bool."""
    return torch.from_numpy(np.indices(TILE).sum(0) % 2 == 0)


def _mark_signs(key: MarkKey) -> Tensor:
    return signs(key, "voxels", 1, _SITES).reshape(TILE)


def _payload_signs(key: MarkKey) -> Tensor:
    return signs(key, "voxel payloads", 16**PAYLOAD_DIGITS, _SITES).reshape(-1, *TILE)
