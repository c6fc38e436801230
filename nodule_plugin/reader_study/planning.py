"""How many readers and cases a study needs to show equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import nct
from scipy.stats import t as student

from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.reader_study.statistics.crossed import Components, standard_error

MOST_CASES = 500


@dataclass(frozen=True)
class Need:
    """How many cases a number of readers needs.

    Attributes:
        readers: how many.
        cases: the least number, None where 500 do not suffice: then the readers are too few.
        power: with that many cases, or with 500.
        standard_error: likewise.
    """

    readers: int
    cases: int | None
    power: float
    standard_error: float


def equivalence_power(
    components: Components, readers: int, cases: int, margin: float, alpha: float = 0.05, true_difference: float = 0.0
) -> float:
    """The chance that two one-sided t tests show equivalence.

    The difference's standard error and degrees of freedom are those of :mod:`.statistics.crossed` at the expected mean
    squares; the chance is the difference of two noncentral t probabilities (Phillips 1990, J Pharmacokinet Biopharm
    18:137-144, without the joint integral: exact enough where it matters, above a power of 0.5).

    Args:
        components: variances of the difference between a generated and a real image of the same findings.
        readers, cases: at least 2 of each.
        margin: of equivalence.
        alpha: of each one-sided test.
        true_difference: between the arms.
    """
    error, df = standard_error(*components.mean_squares(readers, cases), readers, cases)
    if error == 0:
        return float(abs(true_difference) < margin)
    critical = student.ppf(1 - alpha, df)
    below = nct.cdf(-critical, df, (true_difference - margin) / error)
    above = nct.cdf(critical, df, (true_difference + margin) / error)
    return float(max(0.0, below - above))


def needed_cases(
    components: Components,
    readers: Sequence[int],
    margin: float,
    power: float = 0.8,
    alpha: float = 0.05,
    true_difference: float = 0.0,
) -> list[Need]:
    """For each number of readers the least number of cases that reaches a power.

    Raises:
        InputError: if a setting makes no sense.
    """
    for number in readers:
        if number < 2:
            raise InputError(f"readers: 2 or more are needed to speak of readers at large, not {number}")
    if not abs(true_difference) < margin:
        raise InputError(
            f"margin: {margin:g} must be above the true difference {true_difference:g}, or nothing can be shown"
        )
    if not (0 < power < 1 and 0 < alpha < 0.5):
        raise InputError(f"power {power:g} must lie between 0 and 1, alpha {alpha:g} between 0 and 0.5")
    variances = components.reader, components.case, components.error
    if not all(0 <= variance < math.inf for variance in variances) or not any(variances):
        raise InputError("variances: finite standard deviations of 0 or above are needed, one of them above 0")
    needs = []
    for number in readers:
        low, high = 1, MOST_CASES  # the power grows with the cases: halve the range
        reached = equivalence_power(components, number, high, margin, alpha, true_difference)
        if reached >= power:
            while high - low > 1:
                middle = (low + high) // 2
                if equivalence_power(components, number, middle, margin, alpha, true_difference) >= power:
                    high = middle
                else:
                    low = middle
            reached = equivalence_power(components, number, high, margin, alpha, true_difference)
            cases: int | None = high
        else:
            cases = None
        error, _ = standard_error(*components.mean_squares(number, high), number, high)
        needs.append(Need(number, cases, reached, error))
    return needs


def pilot_components(results: str | Path, item: str, model: str | None = None) -> Components:
    """The variances that another study found.

    Args:
        results: ``results.json`` of that study.
        item: whose scores.
        model: whose images; by default the first.

    Raises:
        InputError: if the file is not of a study, or does not hold these variances.
    """
    content = read_json(Path(results), "give a study's results.json")
    try:
        lines = [line for line in content["comparisons"] if line["item"] == item and model in (None, line["model"])]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"pilot: {results} cannot be read as results of a study: {error!r}; give its results.json"
        ) from error
    if not lines or lines[0]["var_error"] is None:
        raise InputError(f"pilot: {results} holds no variances of {item} for {model or 'any model'}; choose another")
    return Components(lines[0]["var_reader"], lines[0]["var_case"], lines[0]["var_error"])
