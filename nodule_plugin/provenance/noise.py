"""A mark in the noise that an image is made from: the signs of its slowest cosine coefficients.

Signs of normal noise are random anyway. Taking them from a keyed word and leaving all magnitudes as they were gives
noise of the same distribution, and so images of the same distribution: Gaussian Shading (Yang Z et al., CVPR 2024,
arXiv:2404.04956), there in the latents themselves, here in their cosine transform, since coarse noise is what the
composition of an image follows and what JPEG, reduction and other windows leave (Tree-Ring, Wen Y et al., NeurIPS 2023,
arXiv:2305.20030, marks coarse Fourier coefficients for the same reason). Cosines of the whole image do not depend on
its size, and turns and flips only permute them and change signs.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from nodule_plugin.provenance.codebook import MarkKey, payloads, word_of, words

WORD_CYCLES, PAYLOAD_CYCLES = (1.0, 8.0), (8.0, 11.0)
"""Cycles across the image whose coefficients say the word, and the word and the payload together: from the first to
below the second."""
SMALLEST = 2 * int(PAYLOAD_CYCLES[1])
"""Latents along a side that the bands need."""
_COUNT = SMALLEST
"""Coefficients along a side."""


def mark_noise(noise: Tensor, seed: int, payload: str, key: MarkKey) -> Tensor:
    """Noise that carries a mark.

    Args:
        noise: (C, h, w) standard normal, at least :data:`SMALLEST` along a side, on the CPU.
        seed: of the image.
        payload: see :func:`nodule_plugin.provenance.codebook.payload_of`.
        key: of the words.

    Returns:
        The same shape and type. Over all seeds it is standard normal, but for the number of words being finite.
    """
    channels, height, width = noise.shape
    down, across = cosines(height).double(), cosines(width).double()
    found = down @ noise.double() @ across.T
    signs = torch.sign(found)
    pattern = patterns(payload, key, channels)[word_of(key, seed)].double()
    coarse, fine = pattern.split([coefficients(channels, cycles) for cycles in (WORD_CYCLES, PAYLOAD_CYCLES)])
    signs[:, band(*WORD_CYCLES)] = coarse.reshape(channels, -1)
    signs[:, band(*PAYLOAD_CYCLES)] = fine.reshape(channels, -1)
    change = found.abs() * signs - found
    return (noise.double() + down.T @ change @ across).to(noise.dtype)


@lru_cache(maxsize=4)
def patterns(payload: str, key: MarkKey, channels: int) -> Tensor:
    """(WORDS, signs) all words of a key, the finer band multiplied by the payload's: -1 or 1."""
    coarse, fine = (coefficients(channels, cycles) for cycles in (WORD_CYCLES, PAYLOAD_CYCLES))
    said = words(key, coarse + fine).clone()
    said[:, coarse:] *= payloads(key, fine)[int(payload, 16)]
    return said


@lru_cache(maxsize=64)
def cosines(size: int) -> Tensor:
    """(coefficients, size) orthonormal rows: the first ones of the cosine transform (DCT-II)."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rows = torch.cos(math.pi * torch.arange(_COUNT, dtype=torch.float64)[:, None] * place) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.float()


@lru_cache(maxsize=4)
def band(low: float, high: float) -> Tensor:
    """(coefficients, coefficients) bool: those from ``low`` to below ``high`` cycles across the image."""
    half_cycles = torch.arange(float(_COUNT))
    cycles = torch.hypot(half_cycles[:, None], half_cycles) / 2
    return (cycles >= low) & (cycles < high)


def coefficients(channels: int, cycles: tuple[float, float]) -> int:
    """How many numbers a band of so many channels has."""
    return channels * int(band(*cycles).sum())


def positions(grid: Tensor) -> Tensor:
    """Coefficients as they are for the image turned by 0, 90, 180, 270 degrees, and each also flipped.

    Args:
        grid: (..., C, coefficients, coefficients).

    Returns:
        (..., 8, C, coefficients, coefficients).
    """
    same = torch.ones(grid.shape[-1])
    mirror = (-1.0) ** torch.arange(grid.shape[-1])
    return torch.stack(
        [
            turned * rows[:, None] * columns
            for turned in (grid, grid.transpose(-1, -2))
            for rows in (same, mirror)
            for columns in (same, mirror)
        ],
        -4,
    )
