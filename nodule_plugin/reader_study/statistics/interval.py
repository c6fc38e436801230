"""A number with its standard error, on Student's t: intervals, tests of difference and of equivalence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """An estimate whose error follows Student's t.

    Attributes:
        value: the estimate.
        standard_error: 0 where every observation is the same.
        df: degrees of freedom; infinite for the normal distribution.
    """

    value: float
    standard_error: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval that covers with probability ``level``."""
        reach = float(student.ppf((1 + level) / 2, self.df)) * self.standard_error
        return self.value - reach, self.value + reach

    def p_difference(self, null: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the true value is ``null``."""
        return float(2 * student.sf(abs(self._t(null)), self.df))

    def p_equivalence(self, margin: float, null: float = 0.0) -> float:
        """p of the two one-sided tests that the true value is ``margin`` or more away from ``null``.

        Below alpha exactly where the interval of level 1 - 2 alpha lies within the margin (Schuirmann 1987, J
        Pharmacokinet Biopharm 15:657-680).
        """
        above = student.sf(self._t(null - margin), self.df)
        below = student.cdf(self._t(null + margin), self.df)
        return float(max(above, below))

    def _t(self, null: float) -> float:
        if self.standard_error > 0:
            return (self.value - null) / self.standard_error
        return 0.0 if self.value == null else math.copysign(math.inf, self.value - null)
