"""The keyed words that marks are made of.

A mark is one of many words: vectors of as many numbers as an image has coefficients in the mark's band
(:mod:`nodule_plugin.provenance.spectrum`). Each of a few parts of the coefficients has words of its own, and a payload
leaves several words open in each, of which the embedder takes the one that the image is closest to already: informed
coding, after Miller ML, Doerr GJ, Cox IJ, "Applying informed coding and embedding to design a robust high-capacity
watermark", IEEE Trans Image Process 2004;13:792-807. (There a trellis chooses, here the parts do.)
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import t as student
from torch import Tensor

from nodule_plugin.errors import InputError
from nodule_plugin.provenance.spectrum import COEFFICIENTS

PARTS, WORDS, SYMBOLS = 4, 1024, 4
"""Parts of the coefficients, words of each, and what a part says: one of 4 symbols, each by any of 256 words."""
PAYLOAD_DIGITS = 2
"""Hexadecimal digits that the symbols of all parts make."""
_FEWEST_BYTES = 16


@dataclass(frozen=True)
class MarkKey:
    """What the words follow from.

    Attributes:
        name: how manifests and reports call it; says nothing of the secret.
        secret: bytes.
    """

    name: str
    secret: bytes


PUBLIC = MarkKey("public", b"nodule-plugin: a synthetic image, version 2")
"""Everybody has it: everybody can find the mark, and so can everybody forge it or take it out."""


def read_key(path: str | Path | None) -> MarkKey:
    """The key that a file holds, as bytes of any kind; the public one for None.

    Raises:
        InputError: if the file cannot be read or is too short to be secret.
    """
    if path is None:
        return PUBLIC
    try:
        secret = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"mark_key: {path} cannot be read ({error.strerror}); correct the path") from error
    if len(secret) < _FEWEST_BYTES:
        raise InputError(f"mark_key: {path} holds {len(secret)} bytes; give {_FEWEST_BYTES} or more, drawn at random")
    return MarkKey(f"secret {hashlib.sha256(b'name' + secret).hexdigest()[:8]}", secret)


def payload_of(weights_sha256: str) -> str:
    """What a mark says of the model: first digits of its weights' SHA-256, or of the SHA-256 of what stands there."""
    is_hash = len(weights_sha256) == 64 and set(weights_sha256) <= set("0123456789abcdef")
    digest = weights_sha256 if is_hash else hashlib.sha256(weights_sha256.encode()).hexdigest()
    return digest[:PAYLOAD_DIGITS]


@dataclass(frozen=True, eq=False)
class Codebook:
    """The words of a key.

    Attributes:
        words: (words, coefficients), drawn from the standard normal distribution.
        part: (coefficients,), which part a coefficient belongs to.
    """

    words: Tensor
    part: Tensor

    def chosen(self, coefficients: Tensor, payload: str) -> Tensor:
        """Of the words that say ``payload`` the one closest to (coefficients,) as they are."""
        open_words = WORDS // SYMBOLS
        word = torch.empty_like(coefficients)
        for number in range(PARTS):
            symbol = int(payload, 16) // SYMBOLS ** (PARTS - 1 - number) % SYMBOLS
            own, first = self.part == number, symbol * open_words
            candidates = self.words[first : first + open_words, own]
            word[own] = candidates[(candidates @ coefficients[own]).argmax()]
        return word

    def nearest(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The word closest to each of several vectors, a part at a time.

        Args:
            coefficients: (N, coefficients).

        Returns:
            (N, parts) numbers of words, and (N,) normalised correlations with what they make together.
        """
        numbers, product, square = [], torch.zeros(len(coefficients)), torch.zeros(len(coefficients))
        for number in range(PARTS):
            words = self.words[:, self.part == number]
            best, which = (coefficients[:, self.part == number] @ words.T).max(-1)
            numbers.append(which)
            product, square = product + best, square + words.square().sum(-1)[which]
        norm = coefficients.norm(dim=-1) * square.sqrt()
        return torch.stack(numbers, -1), product / norm.clamp_min(torch.finfo(norm.dtype).tiny)


@lru_cache(maxsize=8)
def codebook(key: MarkKey) -> Codebook:
    """The words of a key: SHAKE-256 of it, brought to the normal distribution; equal on every machine."""
    raw = np.frombuffer(hashlib.shake_256(key.secret + b"words").digest(2 * WORDS * COEFFICIENTS), "<u2")
    words = ndtri((raw.astype(np.float64) + 0.5) / 2**16).reshape(WORDS, COEFFICIENTS)
    order = np.frombuffer(hashlib.shake_256(key.secret + b"parts").digest(4 * COEFFICIENTS), "<u4")
    part = np.argsort(np.argsort(order, kind="stable"), kind="stable") % PARTS
    return Codebook(torch.from_numpy(words.astype(np.float32)), torch.from_numpy(part))


def payload_said(numbers: Tensor) -> str:
    """The payload of a word, by the (parts,) numbers of its parts."""
    symbols = (
        int(number) // (WORDS // SYMBOLS) * SYMBOLS ** (PARTS - 1 - place) for place, number in enumerate(numbers)
    )
    return f"{sum(symbols):0{PAYLOAD_DIGITS}x}"


def log10_p(correlation: float, tried: int) -> float:
    """Decimal logarithm of the probability that a key drawn at random shows this correlation anywhere.

    A word of independent normal numbers points everywhere alike, so that its correlation with any image whatever,
    times sqrt((n - 1) / (1 - c^2)), follows Student's distribution with n - 1 degrees of freedom: Miller ML, Bloom JA,
    "Computing the probability of false watermark detection", Information Hiding 1999, LNCS 1768:146-158. The sum over
    all words and all places that were tried bounds the whole (Bonferroni).

    Args:
        correlation: the largest that was found.
        tried: ways in which the image was looked at, each with all words.
    """
    freedom = COEFFICIENTS - 1
    value = correlation * math.sqrt(freedom / max(1 - correlation**2, 1e-12))
    single = float(student.logsf(value, freedom)) / math.log(10)
    return min(single + PARTS * math.log10(WORDS) + math.log10(tried), 0.0)
