from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import cohen_kappa_score

from nodule_plugin.statistics import NORMAL_95, proportion_interval, weighted_kappa


def test_normal_quantile() -> None:
    assert pytest.approx(0.95, abs=1e-12) == math.erf(NORMAL_95 / math.sqrt(2))


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (3, 20), (20, 20)])
def test_proportion_interval_is_clopper_and_pearsons(hits: int, count: int) -> None:
    low, high = proportion_interval(hits, count)
    assert low == pytest.approx(beta.ppf(0.025, hits, count - hits + 1) if hits else 0)
    assert high == pytest.approx(beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1)


def test_proportion_of_nothing_is_unknown() -> None:
    assert proportion_interval(0, 0) == [0.0, 1.0]


def test_weighted_kappa_is_scikit_learns_where_every_code_occurs() -> None:
    first, second = np.random.default_rng(0).integers(1, 6, (2, 60))
    expected = cohen_kappa_score(first, second, labels=range(1, 6), weights="quadratic")
    assert weighted_kappa(first, second) == pytest.approx(expected, abs=1e-12)


def test_a_code_that_nobody_gave_keeps_its_distance() -> None:
    first, second = [1, 1, 5, 2, 1], [1, 5, 5, 2, 2]  # scikit-learn takes 1, 2, 5 for neighbours unless told the scale
    expected = cohen_kappa_score(first, second, labels=range(1, 6), weights="quadratic")
    assert weighted_kappa(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("codes", [[], [3, 3]])
def test_kappa_of_equal_codes_does_not_exist(codes: list[int]) -> None:
    assert math.isnan(weighted_kappa(codes, codes))
