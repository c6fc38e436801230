"""Agreement between readers and of readers with themselves: Krippendorff's alpha, weighted kappa, ICC."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import f as fisher

from nodule_plugin.lidc.agreement import weighted_kappa
from nodule_plugin.reader_study.statistics.crossed import mean_squares

NOMINAL, ORDINAL = "nominal", "ordinal"
UPPER_END = 0.975
"""Quantile at which a two-sided 95 % interval ends."""


def krippendorff_alpha(table: np.ndarray, level: str = ORDINAL) -> float:
    """Krippendorff's alpha (2011, "Computing Krippendorff's alpha-reliability", sections C to E).

    Args:
        table: (readers, images), NaN where there is no answer; images with fewer than two answers do not count.
        level: "ordinal" or "nominal".

    Returns:
        1 for perfect agreement, 0 for that of chance; NaN where all answers are the same.
    """
    codes = np.unique(table[~np.isnan(table)])
    counts = (table[:, :, None] == codes).sum(0).astype(float)  # (images, codes)
    answers = counts.sum(1)
    counts, answers = counts[answers >= 2], answers[answers >= 2]
    if not len(answers):
        return math.nan
    pairs = (counts / (answers - 1)[:, None]).T @ counts - np.diag((counts / (answers - 1)[:, None]).sum(0))
    margin = pairs.sum(0)
    distance = _squared_distances(margin, level)
    expected = margin @ distance @ margin / (margin.sum() - 1)
    return float(1 - (pairs * distance).sum() / expected) if expected > 0 else math.nan


def _squared_distances(margin: np.ndarray, level: str) -> np.ndarray:
    if level == NOMINAL:
        return 1 - np.eye(len(margin))
    # Ordinal: how many answers lie from one code to the other, the two ends counted half.
    middle = np.cumsum(margin) - margin / 2
    return (middle[:, None] - middle) ** 2


def mean_kappa(table: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights, the mean over pairs of readers.

    Args:
        table: (readers, images), NaN where there is no answer; a pair is compared on what both answered.

    Returns:
        NaN where no pair differs enough for a kappa to exist.
    """
    kappas = []
    for pair in combinations(table, 2):
        first, second = np.stack(pair)[:, ~np.isnan(pair).any(0)]
        kappas.append(weighted_kappa(first, second))
    kappas = [kappa for kappa in kappas if not math.isnan(kappa)]
    return float(np.mean(kappas)) if kappas else math.nan


@dataclass(frozen=True)
class Correlation:
    """An intraclass correlation with its 95 % interval."""

    value: float
    low: float
    high: float


def intraclass_correlation(table: np.ndarray) -> Correlation:
    """ICC(2,1): absolute agreement of single readers, readers and images random (Shrout and Fleiss 1979, Psychol Bull
    86:420-428), with the 95 % interval of McGraw and Wong (1996, Psychol Methods 1:30-46).

    Args:
        table: (readers, images); images with a gap do not count.

    Returns:
        All NaN where nothing varies or too little is left.
    """
    whole = table[:, ~np.isnan(table).any(0)]
    k, n = whole.shape
    if k < 2 or n < 2 or whole.var() == 0:
        return Correlation(math.nan, math.nan, math.nan)
    squares = mean_squares(whole)
    rows, columns, error = squares.case, squares.reader, squares.error
    value = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    if error == 0 or value >= 1:
        return Correlation(value, math.nan, math.nan)
    a, b = k * value / (n * (1 - value)), 1 + k * value * (n - 1) / (n * (1 - value))
    df = (a * columns + b * error) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
    upper, lower = fisher.ppf(UPPER_END, n - 1, df), fisher.ppf(UPPER_END, df, n - 1)
    rest = k * columns + (k * n - k - n) * error
    low = n * (rows - upper * error) / (upper * rest + n * rows)
    high = n * (lower * rows - error) / (rest + n * lower * rows)
    return Correlation(float(value), float(low), float(high))


def bootstrap_interval(
    measure: Callable[[np.ndarray], float], table: np.ndarray, cases: np.ndarray, draws: int, seed: int
) -> tuple[float, float]:
    """The 95 % percentile interval of an agreement when cases are drawn anew, each with all of its images.

    Args:
        measure: of a (readers, images) table.
        table: the answers.
        cases: (images,) which case an image belongs to.
        draws: how many.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(cases == case) for case in np.unique(cases)]
    values = [
        measure(table[:, np.concatenate([members[index] for index in rng.integers(0, len(members), len(members))])])
        for _ in range(draws)
    ]
    known = np.array(values)[~np.isnan(values)]
    if len(known) < draws / 2:
        return math.nan, math.nan
    low, high = np.quantile(known, [1 - UPPER_END, UPPER_END])
    return float(low), float(high)
