"""Standard errors and intervals of 95 %: of a mean, of a normal estimate, of so many out of so many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

NORMAL_95 = 1.959963984540054
"""Standard errors on either side of a normal estimate that hold 95 %."""


def normal_interval(value: float, error: float) -> list[float]:
    """Both ends of the 95 % interval of an estimate with a standard error."""
    return [value - NORMAL_95 * error, value + NORMAL_95 * error]


def mean_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def proportion_interval(hits: int, count: int) -> list[float]:
    """The exact 95 % interval of ``hits`` of ``count`` (Clopper and Pearson), which has a width at none and all too."""
    if not count:
        return [0.0, 1.0]
    interval = binomtest(hits, count).proportion_ci()
    return [float(interval.low), float(interval.high)]


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
