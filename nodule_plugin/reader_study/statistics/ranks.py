"""What the reference method reports: mean, standard deviation, Mann-Whitney U; and corrections for many tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

EXACT_UP_TO = 20
"""The exact distribution is used where there are no ties and neither sample is larger."""


@dataclass(frozen=True)
class RankTest:
    """A Mann-Whitney U test.

    Attributes:
        u: of the first sample: pairs in which it is above the second, ties counted half.
        p: two-sided.
        method: "exact", or "tie-corrected" (normal approximation with corrections for ties and continuity).
    """

    u: float
    p: float
    method: str


def mann_whitney(first: np.ndarray, second: np.ndarray) -> RankTest:
    """The two-sided Mann-Whitney U test of two samples taken as independent."""
    joined = np.concatenate([first, second])
    exact = len(np.unique(joined)) == len(joined) and max(len(first), len(second)) <= EXACT_UP_TO
    if len(np.unique(joined)) == 1:
        return RankTest(len(first) * len(second) / 2, 1.0, "tie-corrected")
    result = mannwhitneyu(first, second, alternative="two-sided", method="exact" if exact else "asymptotic")
    return RankTest(float(result.statistic), float(result.pvalue), "exact" if exact else "tie-corrected")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979, Scand J Stat 6:65-70): each may be compared with alpha."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    corrected = np.empty(len(p))
    corrected[order] = stepped
    return [float(value) for value in corrected]
