"""An image as a mark's detector sees it: cosine coefficients of a band, evened out.

The band is given in half cycles across the *whole* image, so that a picture that was enlarged or reduced has the same
coefficients, and a turn or flip only permutes them and changes signs. A part of an image is looked at through its own
cosine transform, and what that leaves of it is laid at its place in the whole.

Coefficients are multiplied by a power of their frequency, the inverse of how CT of nodules falls off, and what is still
larger than the median is limited: edges and vessels then count no more than texture. Whitening before correlating is
the advice of every textbook (Cox IJ et al., "Digital Watermarking and Steganography", 2nd ed., 2008, chapter 8);
limiting is the detector for heavy-tailed hosts (Hernandez JR et al., IEEE Trans Image Process 2000;9:55-68).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

LOWEST, HIGHEST = 18, 30
"""The band, half cycles across the image: at least 18 in the direction in which they run, below which anatomy is too
strong for 3 HU, and at most 30 along either side, as an image reduced to 32 pixels holds no more than 32. The corner
between 30 along both and 30 in all is what carries the mark in images whose noise fills the rest."""
_FALL_OFF = 4
"""The power of the frequency: amplitudes fall by about it in the band."""
_LIMIT = 0.3
"""Medians of its magnitude at which a coefficient begins to be limited: near to its sign alone, which a small change
can turn where a coefficient is small, however large the others are."""
_BELOW, _ABOVE = 1, 3
"""Half cycles below and above the band from which a part's coefficients still count: they reach into it."""
_SIDE = HIGHEST + 1


def _frequency(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.hypot(rows[:, None], columns[None])


def _gain(frequency: Tensor, below: int = 0) -> Tensor:
    return torch.where(frequency >= LOWEST - below, (frequency / LOWEST) ** _FALL_OFF, torch.zeros(()))


_RADIUS = _frequency(torch.arange(float(_SIDE)), torch.arange(float(_SIDE)))
_BAND = _gain(_RADIUS) > 0
COEFFICIENTS = int(_BAND.sum())


@lru_cache(maxsize=256)
def _cosines(count: int, pixels: int, offset: int, whole: int) -> Tensor:
    """(count, pixels): the first cosines of an image of ``whole`` pixels, at the pixels from ``offset`` on."""
    place = (torch.arange(pixels, dtype=torch.float64) + offset + 0.5) / whole
    basis = torch.cos(math.pi * torch.arange(count, dtype=torch.float64)[:, None] * place) * math.sqrt(2.0)
    basis[0] /= math.sqrt(2.0)
    return basis.float()


def _transform(image: Tensor, most: Sequence[int]) -> Tensor:
    """(..., rows, columns) -> the first coefficients along both axes, each a mean over pixels."""
    rows, columns = image.shape[-2:]
    across = _cosines(min(most[0], rows), rows, 0, rows) / rows, _cosines(min(most[1], columns), columns, 0, columns)
    return across[0] @ image @ across[1].T / columns


def _limited(grid: Tensor) -> Tensor:
    """(..., side, side) evened coefficients -> (..., COEFFICIENTS), limited."""
    values = grid[..., _BAND]
    scale = _LIMIT * values.detach().abs().median(-1, keepdim=True).values
    return values / torch.sqrt(values.square() + scale.square() + torch.finfo(values.dtype).tiny)


def whole_grid(image: Tensor) -> Tensor:
    """(..., rows, columns) grey values of a whole image of any size -> (..., side, side) evened coefficients."""
    found = _transform(image, (_SIDE, _SIDE))
    missing = _SIDE - found.shape[-1], _SIDE - found.shape[-2]
    return torch.nn.functional.pad(found, (0, missing[0], 0, missing[1])) * _gain(_RADIUS)


def texture(image: Tensor) -> Tensor:
    """Root mean square of what (..., rows, columns), at least 31 pixels a side, hold in the band; their own unit."""
    return _transform(image, (_SIDE, _SIDE))[..., _BAND].square().sum(-1).sqrt()


def part_grids(image: Tensor, whole: int, top: Tensor, left: Tensor) -> Tensor:
    """Parts of an image of ``whole`` x ``whole`` pixels, each at its place.

    Args:
        image: (..., rows, columns) grey values.
        whole: side of the image that they may be parts of.
        top, left: (...,) rows and columns above and before them; the three are broadcast.

    Returns:
        (..., side, side) evened coefficients.
    """
    rows, columns = image.shape[-2:]
    counts = [min(pixels, math.ceil((HIGHEST + _ABOVE) * pixels / whole)) for pixels in (rows, columns)]
    frequency = _frequency(*(torch.arange(float(n)) * whole / pixels for n, pixels in zip(counts, (rows, columns))))
    evened = _transform(image, counts) * _gain(frequency, _BELOW)
    return _laid(counts[0], rows, whole)[top] @ evened @ _laid(counts[1], columns, whole)[left].mT


@lru_cache(maxsize=32)
def _laid(count: int, pixels: int, whole: int) -> Tensor:
    """(places, side, count): what a part's own first cosines are in the whole's, for each place."""
    own = _cosines(count, pixels, 0, pixels)
    places = range(whole - pixels + 1)
    return torch.stack([_cosines(_SIDE, pixels, place, whole) @ own.T for place in places]) / whole


def upright(grid: Tensor) -> Tensor:
    """(..., side, side) evened coefficients -> (..., COEFFICIENTS) of the image as it lies."""
    return _limited(grid)


def in_all_positions(grid: Tensor) -> Tensor:
    """The same for the image turned by 0, 90, 180, 270 degrees, and each also flipped: (..., 8, COEFFICIENTS)."""
    sign = (-1.0) ** torch.arange(grid.shape[-1])
    mirrored = [
        turned * rows[:, None] * columns
        for turned in (grid, grid.transpose(-1, -2))
        for rows in (torch.ones_like(sign), sign)
        for columns in (torch.ones_like(sign), sign)
    ]
    return _limited(torch.stack(mirrored, -3))
