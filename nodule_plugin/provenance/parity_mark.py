"""A mark in numbers that are stored as whole ones: which of them are even and which are odd.

Files of images hold whole Hounsfield units or greys of eight bits, and copies keep every one. Where a mark is wanted
they are rounded to even or odd as a key's pattern says ("LSB matching": Sharp T, "An implementation of key-based
digital signal steganography", Information Hiding 2001). The pattern repeats, so that it is found in any part of an
image or volume, which is searched in small windows. The mark lasts as long as numbers are copied, whatever becomes of
headers; whoever resamples them, puts them into another window or compresses them with loss removes it.

It is the only mark of an inserted nodule, which holds too few pixels for one in the noise that it is made from. In
generated images it stands beside that one (:mod:`nodule_plugin.provenance.noise`), which is lost where they are cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from nodule_plugin.provenance.codebook import PAYLOAD_DIGITS, PUBLIC, MarkKey, log10_p, payload_of, read_key, signs
from nodule_plugin.provenance.detection import READABLE, Detection
from nodule_plugin.settings import as_flag

_LEAST = 8
"""Rows and columns that can be judged."""
_WAYS = 2
"""A pattern and its opposite: an odd intercept of Hounsfield units turns even to odd."""
_TURNS = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)]


@dataclass(frozen=True)
class Lattice:
    """Which sites a mark has, and in which windows it is looked for.

    Attributes:
        scheme: name and version; marks of one are not found by another.
        purpose: that the key's signs are drawn for, in the singular.
        tile: slices, rows and columns after which the pattern repeats.
        apart: every how many-th row and column holds sites. Like the colours of a chessboard one half of these is the
            mark's and the other the payload's.
        window: slices, rows and columns of a window, at most the tile's; they are half a window apart.
    """

    scheme: str
    purpose: str
    tile: tuple[int, int, int]
    apart: int
    window: tuple[int, int, int]

    def sites(self, of_payload: bool = False) -> Tensor:
        """(tile) bool: of the mark, or of the payload."""
        slices, rows, columns = np.indices(self.tile)
        held = (rows % self.apart == 0) & (columns % self.apart == 0)
        return torch.from_numpy(held & ((slices + (rows + columns) // self.apart) % 2 == of_payload))

    def mark_signs(self, key: MarkKey) -> Tensor:
        """(tile) of -1 and 1, and 0 where no site is the mark's."""
        return signs(key, f"{self.purpose}s", 1, math.prod(self.tile)).reshape(self.tile) * self.sites()

    def payload_signs(self, key: MarkKey) -> Tensor:
        """(payloads, *tile) of -1 and 1, and 0 where no site is the payload's."""
        drawn = signs(key, f"{self.purpose} payloads", 16**PAYLOAD_DIGITS, math.prod(self.tile))
        return drawn.reshape(-1, *self.tile) * self.sites(of_payload=True)

    def size(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Of the windows in a volume: such that each has as many of the mark's sites, wherever the pattern begins."""
        slices, rows, columns = (min(most, count) for most, count in zip(self.window, shape))
        return slices, rows - rows % self.apart, columns - columns % (2 * self.apart)

    def step(self) -> tuple[int, int, int]:
        """From one window to the next."""
        slices, rows, columns = (max(length // 2, 1) for length in self.window)
        return slices, rows, columns

    def units(self, agreement: float, size: Sequence[int]) -> float:
        """A sum over a window's sites in units of chance."""
        return agreement / math.sqrt(math.prod(size) / (2 * self.apart**2))


INSERTED = Lattice("nodule-plugin voxels 1", "voxel", (4, 32, 32), 1, (4, 16, 16))
"""Of the voxels that a nodule changes, which are few."""
GENERATED = Lattice("nodule-plugin pixels 1", "pixel", (1, 64, 64), 4, (1, 64, 64))
"""Of generated images: one pixel in 16. A grey of eight bits is 5.5 HU of the models' window, and networks see it where
many pixels change by one (docs/provenance.md)."""


@dataclass(frozen=True)
class ParityMark:
    """Marks what a run writes.

    Attributes:
        key: of the mark.
        payload: what it says, see :func:`nodule_plugin.provenance.codebook.payload_of`.
        lattice: of the mark's sites.
    """

    key: MarkKey
    payload: str
    lattice: Lattice

    def parity(self, shape: Sequence[int]) -> np.ndarray:
        """(slices, rows, columns) int8 of a volume: 0 where it is to be even, 1 where odd, -1 where either."""
        signs = self.lattice.mark_signs(self.key) + self.lattice.payload_signs(self.key)[int(self.payload, 16)]
        wanted = torch.where(signs == 0, -1, (signs > 0).int()).numpy().astype(np.int8)
        return wanted[np.ix_(*(np.arange(count) % period for count, period in zip(shape, self.lattice.tile)))]

    @property
    def described(self) -> dict[str, Any]:
        """What manifests say of it; the key's secret is not in it."""
        return {"scheme": self.lattice.scheme, "key": self.key.name, "payload": self.payload}


def voxel_mark(mark: bool | str, mark_key: str | Path | None, weights_sha256: str) -> ParityMark | None:
    """The mark of inserted nodules that a run's settings ask for; None where none is wanted.

    Args:
        mark: whether one is wanted.
        mark_key: see :func:`nodule_plugin.provenance.codebook.read_key`.
        weights_sha256: of the model.

    Raises:
        InputError: if the key's file cannot be used.
    """
    key = read_key(mark_key)
    return ParityMark(key, payload_of(weights_sha256), INSERTED) if as_flag("mark", mark) else None


def rounded(values: np.ndarray, parity: np.ndarray, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
    """The nearest whole numbers that are even or odd as they are to be, of ``values``' shape.

    Args:
        values: of any shape.
        parity: see :meth:`ParityMark.parity`.
        low, high: limits of the numbers, if any, an even and an odd one.
    """
    odd = np.maximum(parity, 0).astype(np.float64)
    nearest = np.clip(2 * np.rint((values - odd) / 2) + odd, low + odd, high - 1 + odd)
    return np.where(parity < 0, np.clip(np.rint(values), low, high), nearest)


def detect_parity(volume: np.ndarray, lattice: Lattice, key: MarkKey = PUBLIC, turned: bool = False) -> Detection:
    """Look for a key's mark in a volume, which may be a part of a larger one, at every place.

    Args:
        volume: (slices, rows, columns) of one or more, in the orientation of
            :data:`nodule_plugin.data.orientation.SHOWN`; Hounsfield units or greys.
        lattice: of the mark.
        key: the key.
        turned: whether rows and columns may be turned or mirrored; nothing says how pictures lie.

    Returns:
        The likeliest finding, its p-value corrected for all windows, shifts of the pattern and turns. Nothing can be
        said of values that are not whole or all one, or of a few columns.
    """
    if min(volume.shape[1:]) < _LEAST or not np.ptp(volume) or not (volume == np.rint(volume)).all():
        return Detection(0.0, None, key.name, possible=False)
    odd = np.where(volume.astype(np.int64) % 2, 1.0, -1.0).astype(np.float32)
    turns = _TURNS if turned else _TURNS[:1]
    best = min((_as_it_lies(one, lattice, key) for one in _oriented(odd, turns)), key=lambda one: one.log10_p)
    return replace(best, log10_p=min(best.log10_p + math.log10(len(turns)), 0.0), inserted=lattice is INSERTED)


def _oriented(volume: np.ndarray, turns: Sequence[tuple[int, bool]]) -> Iterator[Tensor]:
    for quarters, mirrored in turns:
        turned = np.rot90(volume[..., ::-1] if mirrored else volume, quarters, (1, 2))
        yield torch.from_numpy(np.ascontiguousarray(turned))


def _as_it_lies(odd: Tensor, lattice: Lattice, key: MarkKey) -> Detection:
    """Look in one orientation of 1 odd and -1 even."""
    tried = _WAYS * math.prod(lattice.tile) * math.prod(_counts(odd.shape, lattice))
    # A whole series has the pattern where it was laid; that is one of the shifts, and quick to look at.
    for look in (_as_laid, _in_all_shifts):
        likeliest = look(odd, lattice, key)
        found = Detection(log10_p(likeliest.agreement, tried), None, key.name)
        if found.found:
            return replace(found, payload=_payload(likeliest, lattice, key))
    return found


@dataclass(frozen=True)
class _Likeliest:
    """The window that agrees best with a pattern.

    Attributes:
        agreement: in units of chance.
        window: (tile) 1 odd and -1 even from the tile's beginning, 0 beyond the window.
        shift: of the pattern in it: slices, rows, columns.
    """

    agreement: float
    window: Tensor
    shift: tuple[int, ...]


def _as_laid(odd: Tensor, lattice: Lattice, key: MarkKey) -> _Likeliest:
    """Where a pattern begins with the volume."""
    tiles = [-(-count // period) for count, period in zip(odd.shape, lattice.tile)]
    laid = lattice.mark_signs(key).repeat(tiles)[tuple(map(slice, odd.shape))]
    size = lattice.size(odd.shape)
    sums = avg_pool3d((odd * laid)[None], size, lattice.step())[0].abs()
    place = [int(at) * step for at, step in zip(np.unravel_index(int(sums.argmax()), sums.shape), lattice.step())]
    window = torch.zeros(lattice.tile)
    window[tuple(map(slice, size))] = odd[tuple(slice(at, at + length) for at, length in zip(place, size))]
    agreement = lattice.units(float(sums.max()) * math.prod(size), size)
    return _Likeliest(agreement, window, tuple(-at % period for at, period in zip(place, lattice.tile)))


def _in_all_shifts(odd: Tensor, lattice: Lattice, key: MarkKey) -> _Likeliest:
    """Wherever a pattern begins, as in a part of a volume."""
    spectrum = torch.fft.rfftn(lattice.mark_signs(key)).conj()
    best = _Likeliest(0.0, torch.zeros(lattice.tile), (0, 0, 0))
    for windows in _windows(odd, lattice):
        sums = torch.fft.irfftn(torch.fft.rfftn(windows, dim=(1, 2, 3)) * spectrum, s=lattice.tile, dim=(1, 2, 3)).abs()
        agreement = lattice.units(float(sums.max()), lattice.size(odd.shape))
        if agreement > best.agreement:
            window, *shift = (int(at) for at in np.unravel_index(int(sums.argmax()), sums.shape))
            best = _Likeliest(agreement, windows[window].clone(), tuple(shift))
    return best


def _counts(shape: Sequence[int], lattice: Lattice) -> list[int]:
    """Windows along each axis."""
    return [(count - length) // step + 1 for count, length, step in zip(shape, lattice.size(shape), lattice.step())]


def _windows(odd: Tensor, lattice: Lattice) -> Iterator[Tensor]:
    """(n, *tile) windows of (slices, rows, columns), each laid at a tile's beginning, 0 beyond."""
    size = lattice.size(odd.shape)
    views = odd
    for axis, (length, step) in enumerate(zip(size, lattice.step())):
        views = views.unfold(axis, length, step)
    for row in views:
        laid = torch.zeros(row.shape[0] * row.shape[1], *lattice.tile)
        laid[:, : size[0], : size[1], : size[2]] = row.flatten(0, 1)
        yield laid


def _payload(likeliest: _Likeliest, lattice: Lattice, key: MarkKey) -> str | None:
    """What the payload's sites say, where that can be told."""
    laid = torch.roll(likeliest.window, [-at for at in likeliest.shift], (0, 1, 2)) * lattice.sites(of_payload=True)
    said = (laid.flatten() @ lattice.payload_signs(key).flatten(1).T).abs() / laid.norm().clamp_min(1.0)
    readable = log10_p(float(said.max()), _WAYS * len(said)) < READABLE
    return f"{int(said.argmax()):0{PAYLOAD_DIGITS}x}" if readable else None
