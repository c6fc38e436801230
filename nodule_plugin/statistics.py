"""Small statistics that several rooms need: errors, 95 % intervals, agreement. Arrays and counts in, numbers out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm

NORMAL_95 = float(norm.ppf(0.975))
"""How many standard errors a 95 % interval of the normal distribution reaches to either side."""


def normal_interval(value: float, error: float) -> list[float]:
    """Both ends of the 95 % interval of an estimate with a standard error."""
    return [value - NORMAL_95 * error, value + NORMAL_95 * error]


def mean_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def proportion_interval(hits: int, count: int) -> list[float]:
    """The exact 95 % interval of a proportion (Clopper and Pearson 1934, Biometrika 26:404-413).

    Args:
        hits: from 0 to ``count``.
        count: of trials.

    Returns:
        Lower and upper end; 0 and 1 of no trial. It has a width where none or all are hits, too.
    """
    if not count:
        return [0.0, 1.0]
    ends = binomtest(hits, count).proportion_ci()
    return [float(ends.low), float(ends.high)]


@dataclass(frozen=True)
class Rate:
    """So many of so many."""

    hits: int
    count: int

    @property
    def fraction(self) -> float:
        """From 0 to 1; NaN of none."""
        return self.hits / self.count if self.count else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json holds it, with the exact 95 % interval."""
        interval = proportion_interval(self.hits, self.count)
        return {"hits": self.hits, "count": self.count, "share": self.fraction, "ci95": interval}


def weighted_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968, Psychol Bull 70:213-220).

    Args:
        first, second: (images,) codes, which are numbers: a code that nobody gave keeps its distance.

    Returns:
        1 for perfect agreement, 0 for that of chance; NaN where all codes are one, or there is none.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2 if len(a) else 0.0
    return float(1 - ((a - b) ** 2).mean() / chance) if chance > 0 else math.nan
