"""Looking for a mark in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.data.transforms import resized
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, hu_to_unit, unit_to_hu
from nodule_plugin.provenance.codebook import PAYLOAD_DIGITS, PUBLIC, WORDS, MarkKey, log10_p, payloads, words
from nodule_plugin.provenance.inversion import Inversion
from nodule_plugin.provenance.noise import PAYLOAD_CYCLES, WORD_CYCLES, band, cosines, positions

THRESHOLD = -6.0
"""Decimal logarithm of the p-value below which a mark is reported."""
READABLE = -3.0
"""Decimal logarithm of the p-value below which a payload is."""
_LEAST_PART = 0.75
"""Of the model's side; an image from this size on may be a part of one."""
_LIMIT = 2.0
"""Medians of its magnitude at which a coefficient is limited: anatomy then counts no more than texture."""
WINDOWS_HU = (DEFAULT_WINDOW_HU, (-1350.0, 150.0), (-1000.0, 1000.0))
"""Windows that a picture may have been written in: the models', the usual one of lung, and a wide one. Others that are
like one of them need not be tried: a network forgives as much."""
_AT_ONCE = 16
_AS_WRITTEN, _OTHERWISE = 5 / 9, 1 / 9
"""Of all chance of a false alarm (weighted Bonferroni): an image as a whole in the models' window has five ninths, and
one in each other window, one that is turned and one that is a part a ninth each."""
_TURNS = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)][1:]
"""What sets a turned image upright again. Its noise turns with it and is tried in all orientations anyway; but a
network has learnt from upright patients, and of a turned image some noise does not come back."""
_STATISTICS = 2
"""A word is looked for alone, and with the payload: the finer band is lost first, and says more where it is not."""


@dataclass(frozen=True)
class Detection:
    """What was found in an image.

    Attributes:
        log10_p: decimal logarithm of the p-value, corrected for all that was tried; 0 where nothing was.
        payload: first hexadecimal digits of the model's hash; None where they cannot be read.
        key: name of the key.
        part_of: side of the image that this is a part of; None for a whole one.
        possible: False where no image could carry a mark, see :func:`can_carry`.
        inserted: whether the mark is that of an inserted nodule (:mod:`nodule_plugin.provenance.voxel_mark`).
    """

    log10_p: float
    payload: str | None
    key: str
    part_of: int | None = None
    possible: bool = True
    inserted: bool = False

    @property
    def found(self) -> bool:
        """Whether there is a mark."""
        return self.log10_p < THRESHOLD


def detect(image: np.ndarray, inversion: Inversion, key: MarkKey = PUBLIC, parts: bool = True) -> Detection:
    """Look for a key's mark: in the image as a whole, of any size, turned and flipped, and as a part of a larger one.

    Args:
        image: (rows, columns) in [-1, 1] of the window it was written with, or near to it.
        inversion: of the model that it may be from. Another model of the same images finds marks less surely.
        key: the key.
        parts: look at images smaller than the model's as a part, too; it takes most of the time.

    Returns:
        The likeliest finding.
    """
    found = detect_all([image], inversion, key, WINDOWS_HU[:1])
    if parts and _may_be_a_part(image, inversion):
        unit = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
        looks = _in_all_positions(_as_part(unit, inversion))
        found.append(_nearest(looks, key, _OTHERWISE, inversion.image_size))
    if not any(one.found for one in found):
        found += detect_all([image], inversion, key, WINDOWS_HU[1:])
    if can_carry(image, inversion) and not any(one.found for one in found):
        found.append(_nearest(_set_upright(image, inversion), key, _OTHERWISE))
    return min(found, key=_chance)


def detect_all(
    images: Sequence[np.ndarray],
    inversion: Inversion,
    key: MarkKey = PUBLIC,
    windows_hu: Sequence[tuple[float, float]] = WINDOWS_HU,
) -> list[Detection]:
    """Look for a key's mark in images as wholes, of any size, turned and flipped, several at once.

    Args:
        images: see :func:`detect`.
        inversion, key: see :func:`detect`.
        windows_hu: that the images may have been written in; the first alone where their Hounsfield units are known.

    Returns:
        The likeliest finding of each image.
    """
    best = [Detection(0.0, None, key.name)] * len(images)
    for window_hu in windows_hu:
        fraction = _AS_WRITTEN if window_hu == WINDOWS_HU[0] else _OTHERWISE
        left = [index for index, one in enumerate(best) if not one.found and can_carry(images[index], inversion)]
        for start in range(0, len(left), _AT_ONCE):
            chosen = left[start : start + _AT_ONCE]
            units = torch.stack([_whole(images[index], window_hu, inversion.image_size) for index in chosen])
            for index, grid in zip(chosen, _coefficients(inversion(units))):
                found = _nearest(_in_all_positions(grid[None]), key, fraction)
                best[index] = min(best[index], found, key=_chance)
    return best


def _chance(detection: Detection) -> float:
    return detection.log10_p


def can_carry(image: np.ndarray, inversion: Inversion) -> bool:
    """Whether an image (rows, columns) is large enough for a mark, and not all of one value."""
    return min(image.shape) >= 2 * inversion.pixels_per_latent and np.ptp(image) > 0


def _may_be_a_part(image: np.ndarray, inversion: Inversion) -> bool:
    size = inversion.image_size
    return can_carry(image, inversion) and _LEAST_PART * size <= min(image.shape) < size >= max(image.shape)


def _whole(image: np.ndarray, window_hu: tuple[float, float], size: int) -> Tensor:
    """(1, size, size) in [-1, 1] of the model's window, of an image that may have been written in ``window_hu``."""
    unit = hu_to_unit(unit_to_hu(np.ascontiguousarray(image, dtype=np.float32), window_hu))
    return torch.from_numpy(resized(unit, (size, size)))[None]


def _set_upright(image: np.ndarray, inversion: Inversion) -> Tensor:
    """(turns, C, coefficients, coefficients): of the image turned in every way, each for an upright one."""
    turned = [np.rot90(np.fliplr(image) if mirrored else image, quarters) for quarters, mirrored in _TURNS]
    units = torch.stack([_whole(one, DEFAULT_WINDOW_HU, inversion.image_size) for one in turned])
    return _coefficients(inversion(units))


def _coefficients(noise: Tensor) -> Tensor:
    """(..., C, h, w) -> (..., C, coefficients, coefficients)."""
    return cosines(noise.shape[-2]) @ noise @ cosines(noise.shape[-1]).T


def _as_part(image: Tensor, inversion: Inversion) -> Tensor:
    """(looks, C, coefficients, coefficients): of the image laid at every place of a whole one, half a latent apart."""
    step = inversion.pixels_per_latent
    side = inversion.image_size // step
    shifts = (0, step // 2) if step > 1 else (0,)
    looks = []
    for above in shifts:
        for before in shifts:
            moved = torch.nn.functional.pad(image[None, None], (before, 0, above, 0), "replicate")
            noise = inversion(moved)[0]
            down, across = (_laid(side, count) for count in noise.shape[-2:])
            looks.append((down[:, None, None] @ noise @ across.mT[:, None]).flatten(0, 1))
    return torch.cat(looks)


def _laid(side: int, count: int) -> Tensor:
    """(places, coefficients, count): the whole's cosines at the latents that a part covers, for each place."""
    return torch.stack([cosines(side)[:, place : place + count] for place in range(max(side - count, 0) + 1)])


def _in_all_positions(grid: Tensor) -> Tensor:
    """(N, C, coefficients, coefficients) -> (8 N, ...)."""
    return positions(grid).flatten(0, 1)


def _nearest(looks: Tensor, key: MarkKey, fraction: float, part_of: int | None = None) -> Detection:
    """The best of (N, C, coefficients, coefficients), its p-value corrected for all that was and will be tried.

    ``fraction`` is what these looks have of the chance of a false alarm.
    """
    coarse = looks[..., band(*WORD_CYCLES)].flatten(1)
    fine = looks[..., band(*PAYLOAD_CYCLES)].flatten(1)
    candidates = words(key, coarse.shape[1] + fine.shape[1])
    agreement = _agreement(coarse, candidates[:, : coarse.shape[1]])
    best, word = divmod(int(agreement.argmax()), WORDS)
    coarse, fine = coarse[best : best + 1], fine[best : best + 1]
    start, end = candidates[word].split([coarse.shape[1], fine.shape[1]])
    ends = end * payloads(key, fine.shape[1])
    said = _agreement(fine, ends)[0]
    readable = log10_p(float(said.max()), len(ends)) < READABLE
    both = torch.cat([start.expand(len(ends), -1), ends], 1)
    joint = _agreement(torch.cat([coarse, fine], 1), both)
    tried = _STATISTICS * len(looks) * WORDS / fraction
    chance = min(log10_p(float(agreement.max()), tried), log10_p(float(joint.max()), tried * len(ends)))
    payload = f"{int(said.argmax()):0{PAYLOAD_DIGITS}x}" if readable else None
    return Detection(chance, payload, key.name, part_of)


def _agreement(values: Tensor, signs: Tensor) -> Tensor:
    """(N, n) coefficients and (M, n) signs -> (N, M) sums of theirs in units of chance."""
    limit = _LIMIT * values.abs().median(-1, keepdim=True).values
    values = values.clamp(-limit, limit)
    return values @ signs.T / values.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)


def p_text(log10_p_value: float) -> str:
    """A p-value as text, such as "3e-24"; smaller ones than floating point holds too."""
    if log10_p_value >= -2:
        return f"{10**log10_p_value:.2f}"
    power = math.floor(log10_p_value + 1 - math.log10(9.5))  # 9.5 and above is rounded to ten
    return f"{10 ** (log10_p_value - power):.0f}e{power:+03d}"
