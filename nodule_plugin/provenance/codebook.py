"""Keys of marks, and the signs that follow from them.

A mark is a pattern of signs of the noise that an image is made from (:mod:`nodule_plugin.provenance.noise`). One
pattern for all images would give them all much the same composition; a key therefore has many words, of which the
image's seed takes one, and the detector tries them all.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from nodule_plugin.errors import InputError

WORDS = 2**12
"""Of a key: so many that images of one set seldom share one."""
PAYLOAD_DIGITS = 2
"""Hexadecimal digits that a mark says of the model."""
_FEWEST_BYTES = 16
_TAIL = 1 / (4 * norm.sf(math.sqrt(2)))


@dataclass(frozen=True)
class MarkKey:
    """What the words follow from.

    Attributes:
        name: how manifests and reports call it; says nothing of the secret.
        secret: bytes.
    """

    name: str
    secret: bytes


PUBLIC = MarkKey("public", b"nodule-plugin: a synthetic image, version 3")
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


def word_of(key: MarkKey, seed: int) -> int:
    """Which of a key's words an image of that seed takes."""
    return int.from_bytes(hashlib.shake_256(key.secret + f"seed {seed}".encode()).digest(8), "big") % WORDS


@lru_cache(maxsize=4)
def words(key: MarkKey, length: int) -> Tensor:
    """(WORDS, length) signs, -1 or 1: SHAKE-256 of the key, equal on every machine."""
    return signs(key, "words", WORDS, length)


@lru_cache(maxsize=4)
def payloads(key: MarkKey, length: int) -> Tensor:
    """(256, length) signs, a row for each payload."""
    return signs(key, "payloads", 16**PAYLOAD_DIGITS, length)


def signs(key: MarkKey, purpose: str, count: int, length: int) -> Tensor:
    """(count, length) signs, -1 or 1, that follow from a key and the name of their purpose."""
    drawn = hashlib.shake_256(key.secret + purpose.encode()).digest(-(-count * length // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=count * length)
    return torch.from_numpy(bits.reshape(count, length).astype(np.float32) * 2 - 1)


def log10_p(agreement: float, tried: float) -> float:
    """Decimal logarithm of the probability that random signs agree so well with an image anywhere.

    The sum of any fixed numbers with random signs, divided by the root of the sum of their squares, exceeds x at most
    3.18 times as often as a normal variable does, whatever the numbers are (Bentkus VK, Dzindzalieta D, "A tight
    Gaussian bound for weighted sums of Rademacher random variables", Bernoulli 2015;21:1231-1237). The sum over all
    that was tried bounds the whole (Bonferroni).

    Args:
        agreement: the largest such sum.
        tried: patterns, times the ways in which the image was looked at; divided by what they have of the chance of a
            false alarm where others have the rest.
    """
    return min(float(norm.logsf(agreement)) / math.log(10) + math.log10(_TAIL) + math.log10(tried), 0.0)
