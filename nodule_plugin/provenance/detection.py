"""Looking for a mark in an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from nodule_plugin.provenance.codebook import PUBLIC, MarkKey, codebook, log10_p, payload_said
from nodule_plugin.provenance.spectrum import in_all_positions, part_grids, whole_grid

THRESHOLD = -6.0
"""Decimal logarithm of the p-value below which a mark is reported."""
WHOLE_SIDES = (64, 128, 256, 512)
"""Of what an image may be a part: what models write."""
_LEAST_PART = 0.75
_PLACES = 128
"""Places along a side at which a part is laid: two a half cycle and more."""
_POSITIONS = 8
_SMALLEST = 24
"""Pixels a side; below, too little of the band is left."""
_KINDS = 2
"""An image is looked at as a whole and as a part; either has half of the p-value."""


@dataclass(frozen=True)
class Detection:
    """What was found in an image.

    Attributes:
        log10_p: decimal logarithm of the p-value, corrected for all that was tried; 0 where nothing was.
        payload: first hexadecimal digits of the model's hash, as the nearest word says it; means nothing unless found.
        key: name of the key.
        part_of: side of the image that this is a part of; None for a whole one.
    """

    log10_p: float
    payload: str
    key: str
    part_of: int | None = None

    @property
    def found(self) -> bool:
        """Whether there is a mark."""
        return self.log10_p < THRESHOLD


def detect(image: np.ndarray, key: MarkKey = PUBLIC, parts: bool = True) -> Detection:
    """Look for a key's mark: in the image as a whole, of any size, turned and flipped, and as a part of a larger one.

    Args:
        image: (rows, columns) grey values in any linear scale: Hounsfield units, or a picture's.
        key: the key.
        parts: look at the image as a part, too, which takes about 0.1 s.

    Returns:
        The likeliest finding.
    """
    nothing = Detection(0.0, "", key.name)
    if min(image.shape) < _SMALLEST or np.ptp(image) == 0:
        return nothing
    grey = torch.tensor(np.ascontiguousarray(image), dtype=torch.float32)
    grey = grey - grey.mean()
    with torch.no_grad():
        found = [_nearest(in_all_positions(whole_grid(grey)), key, None)]
        if parts:
            found += [_as_part(grey, side, key) for side in _sides(*image.shape)]
    return min(found, key=lambda one: one.log10_p)


def _sides(rows: int, columns: int) -> list[int]:
    return [
        side
        for side in WHOLE_SIDES
        if min(rows, columns) < side and max(rows, columns) <= side and min(rows, columns) >= _LEAST_PART * side
    ]


def _as_part(grey: torch.Tensor, side: int, key: MarkKey) -> Detection:
    step = max(1, side // _PLACES)
    top, left = (torch.arange(0, side - pixels + 1, step) for pixels in grey.shape)
    return _nearest(in_all_positions(part_grids(grey, side, top[:, None], left)), key, side)


def _nearest(coefficients: torch.Tensor, key: MarkKey, part_of: int | None) -> Detection:
    """The best of (..., COEFFICIENTS) looks at an image, its p-value corrected for their number."""
    looks = coefficients.reshape(-1, coefficients.shape[-1])
    numbers, correlations = codebook(key).nearest(looks)
    best = int(correlations.argmax())
    chance = log10_p(float(correlations[best]), _KINDS * len(looks))
    return Detection(chance, payload_said(numbers[best]), key.name, part_of)


def p_text(log10_p_value: float) -> str:
    """A p-value as text, such as "3e-24"; smaller ones than floating point holds too."""
    power = math.floor(log10_p_value)
    return f"{10 ** (log10_p_value - power):.0f}e{power:+03d}" if log10_p_value < -2 else f"{10**log10_p_value:.2f}"
