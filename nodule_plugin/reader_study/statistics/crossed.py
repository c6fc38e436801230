"""The mean of a table of readers by cases, both random: its standard error counts either source of variation.

Every reader scores every case, and ``x[r, c] = mean + reader[r] + case[c] + error[r, c]``. The mean's variance is
``var_reader / R + var_case / C + var_error / (R C)``, estimated from the two-way analysis of variance; degrees of
freedom after Satterthwaite (1946, Biometrics Bull 2:110-114). For a difference between two arms this is the quasi-F of
Clark (1973, J Verbal Learn Verbal Behav 12:335-359); negative components count as 0, as Hillis (2007, Stat Med
26:596-619) has it in the same setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nodule_plugin.reader_study.statistics.interval import Estimate


@dataclass(frozen=True)
class Components:
    """Variances in a table of readers by cases.

    Attributes:
        reader: between readers, beyond error.
        case: between cases, beyond error.
        error: of one reader at one case.
    """

    reader: float
    case: float
    error: float

    def mean_squares(self, readers: int, cases: int) -> tuple[float, float, float]:
        """What the mean squares of readers, cases and error are expected to be."""
        return self.error + cases * self.reader, self.error + readers * self.case, self.error


@dataclass(frozen=True)
class MeanSquares:
    """The two-way analysis of variance of a table without gaps."""

    reader: float
    case: float
    error: float
    readers: int
    cases: int

    def components(self) -> Components:
        """The variances, none below 0."""
        return Components(
            max(0.0, (self.reader - self.error) / self.cases),
            max(0.0, (self.case - self.error) / self.readers),
            self.error,
        )


def mean_squares(table: np.ndarray) -> MeanSquares:
    """The analysis of variance of a (readers, cases) table, at least 2 by 2, without gaps."""
    readers, cases = table.shape
    mean = table.mean()
    by_reader, by_case = table.mean(1) - mean, table.mean(0) - mean
    error = table - mean - by_reader[:, None] - by_case
    return MeanSquares(
        reader=float(cases * (by_reader**2).sum() / (readers - 1)),
        case=float(readers * (by_case**2).sum() / (cases - 1)),
        error=float((error**2).sum() / ((readers - 1) * (cases - 1))),
        readers=readers,
        cases=cases,
    )


def crossed_mean(table: np.ndarray) -> Estimate:
    """The mean of a (readers, cases) table without gaps, both random; at least 2 by 2."""
    squares = mean_squares(table)
    error, df = standard_error(squares.reader, squares.case, squares.error, squares.readers, squares.cases)
    return Estimate(float(table.mean()), error, df)


def standard_error(reader: float, case: float, error: float, readers: int, cases: int) -> tuple[float, float]:
    """The mean's standard error and degrees of freedom.

    Args:
        reader, case, error: mean squares.
        readers, cases: numbers of them.
    """
    weights = (float(reader > error), float(case > error))
    total = error + weights[0] * (reader - error) + weights[1] * (case - error)
    if total <= 0:
        return 0.0, math.inf
    spread = weights[0] * reader**2 / (readers - 1) + weights[1] * case**2 / (cases - 1)
    spread += (1 - sum(weights)) ** 2 * error**2 / ((readers - 1) * (cases - 1))
    return math.sqrt(total / (readers * cases)), total**2 / spread


def complete_block(present: np.ndarray, fraction: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """The readers and cases of a table without gaps, cut from one with gaps.

    Readers who answered less than ``fraction`` of the cases are left out first, then every case with a gap.

    Args:
        present: (readers, cases), True where there is an answer.
        fraction: of the cases.

    Returns:
        (readers,) and (cases,), True for those who stay.
    """
    readers = present.sum(1) >= max(fraction * present.shape[1], 1)
    return readers, present[readers].all(0)
