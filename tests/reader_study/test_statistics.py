"""Each statistic against an independent implementation or a published example; references.json names them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from nodule_plugin.reader_study.statistics.agreement import (
    NOMINAL,
    bootstrap_interval,
    intraclass_correlation,
    krippendorff_alpha,
    mean_kappa,
)
from nodule_plugin.reader_study.statistics.crossed import Components, complete_block, crossed_mean, mean_squares
from nodule_plugin.reader_study.statistics.interval import Estimate
from nodule_plugin.reader_study.statistics.ordinal import fit_ordinal
from nodule_plugin.reader_study.statistics.ranks import holm, mann_whitney
from nodule_plugin.reader_study.statistics.roc import areas, curve

REFERENCES: dict[str, Any] = json.loads(Path(__file__).with_name("references.json").read_text())


def digits(*lines: str) -> np.ndarray:
    return np.array([[float(digit) for digit in line] for line in lines])


def test_mann_whitney_with_ties_against_r() -> None:
    expected = REFERENCES["wilcoxon"]["ties"]
    result = mann_whitney(digits(expected["first"])[0], digits(expected["second"])[0])
    assert (result.u, result.method) == (expected["u"], "tie-corrected")
    assert result.p == pytest.approx(expected["p"], rel=1e-9)


def test_mann_whitney_without_ties_is_exact_as_in_r() -> None:
    expected = REFERENCES["wilcoxon"]["exact"]
    result = mann_whitney(np.array(expected["first"]), np.array(expected["second"]))
    assert (result.u, result.method) == (expected["u"], "exact")
    assert result.p == pytest.approx(expected["p"], rel=1e-9)


def test_mann_whitney_where_all_scores_are_the_same() -> None:
    assert mann_whitney(np.full(5, 3.0), np.full(4, 3.0)).p == 1


def test_holm_against_r() -> None:
    expected = REFERENCES["holm"]
    assert holm(expected["p"]) == pytest.approx(expected["corrected"])
    assert holm([]) == []


def test_mean_squares_against_r() -> None:
    expected = REFERENCES["aov"]
    squares = mean_squares(np.array(expected["table"]))
    assert squares.reader == pytest.approx(expected["reader"], rel=1e-9)
    assert squares.case == pytest.approx(expected["case"], rel=1e-9)
    assert squares.error == pytest.approx(expected["error"], rel=1e-9)


def test_crossed_mean_is_the_t_test_of_cases_where_readers_do_not_differ() -> None:
    """Readers who agree but for a noise that cancels out: nothing but the sample of cases is left."""
    case = np.random.default_rng(0).normal(0.3, 1, 12)
    estimate = crossed_mean(np.stack([case, case, case]))
    expected = ttest_1samp(case, 0)
    assert estimate.p_difference() == pytest.approx(expected.pvalue, rel=1e-9)
    assert estimate.df == pytest.approx(11)


def test_crossed_mean_by_hand() -> None:
    """MS 1.4337, 4.1318, 1.1568 of four readers and twelve cases: (1.4337 + 4.1318 - 1.1568) / 48."""
    squares = REFERENCES["aov"]
    estimate = crossed_mean(np.array(squares["table"]))
    total = squares["reader"] + squares["case"] - squares["error"]
    assert estimate.standard_error == pytest.approx(math.sqrt(total / 48))
    spread = squares["reader"] ** 2 / 3 + squares["case"] ** 2 / 11 + squares["error"] ** 2 / 33
    assert estimate.df == pytest.approx(total**2 / spread)


def test_components_are_recovered() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(0, 0.5, (60, 1)) + rng.normal(0, 0.8, (1, 60)) + rng.normal(0, 1.0, (60, 60))
    found = mean_squares(table).components()
    assert (found.reader, found.case, found.error) == pytest.approx((0.25, 0.64, 1.0), rel=0.35)
    assert Components(0.25, 0.64, 1.0).mean_squares(60, 60) == pytest.approx((16, 39.4, 1))
    by_case = np.tile([0.0, 1.0, 2.0], (2, 1))  # of which the variance is 1
    assert mean_squares(by_case).components() == Components(0, 1, 0)
    assert mean_squares(by_case.T).components() == Components(1, 0, 0)


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
def test_equivalence_against_two_one_sided_tests_of_scipy(margin: float) -> None:
    sample = np.random.default_rng(2).normal(0.1, 1, 30)
    estimate = Estimate(sample.mean(), sample.std(ddof=1) / math.sqrt(30), 29)
    lower = ttest_1samp(sample, -margin, alternative="greater").pvalue
    upper = ttest_1samp(sample, margin, alternative="less").pvalue
    assert estimate.p_equivalence(margin) == pytest.approx(max(lower, upper), rel=1e-9)
    low, high = estimate.interval(0.9)
    assert (estimate.p_equivalence(margin) < 0.05) == (-margin < low and high < margin)


@pytest.mark.parametrize(("value", "equivalent"), [(0.0, True), (0.4, True), (0.6, False)])
def test_without_any_spread_the_value_decides(value: float, equivalent: bool) -> None:
    estimate = Estimate(value, 0.0, math.inf)
    assert (estimate.p_equivalence(0.5) < 0.05) is equivalent
    assert (estimate.p_difference() < 0.05) is (value != 0)


def test_complete_block_drops_readers_then_cases() -> None:
    present = np.ones((3, 10), bool)
    present[2, :5] = False  # stopped half-way
    present[0, 7:9] = False  # answered 80 % and stays
    readers, cases = complete_block(present)
    assert readers.tolist() == [True, True, False]
    assert cases.sum() == 8
    readers, cases = complete_block(np.zeros((2, 0), bool))
    assert not readers.any()


class TestVanDyke:
    """Five readers' ratings of 114 cases, analysed by several programs."""

    data = REFERENCES["van_dyke"]
    ratings = digits(*data["ratings"])
    truth = digits(data["truth"])[0].astype(bool)

    def test_areas_against_scikit_learn(self) -> None:
        found = areas(self.ratings[:, self.truth], self.ratings[:, ~self.truth]).areas
        assert found == pytest.approx([roc_auc_score(self.truth, row) for row in self.ratings])

    def test_covariances_against_proc(self) -> None:
        found = areas(self.ratings[:, self.truth], self.ratings[:, ~self.truth]).covariance
        np.testing.assert_allclose(found, self.data["proc"]["covariance"], rtol=1e-9)

    def test_interval_against_mrmcaov(self) -> None:
        expected = self.data["mrmcaov"]
        mean = areas(self.ratings[:, self.truth], self.ratings[:, ~self.truth]).mean()
        assert mean.value == pytest.approx(expected["estimate"], abs=5e-8)
        assert mean.standard_error == pytest.approx(expected["standard_error"], abs=5e-9)
        assert mean.df == pytest.approx(expected["df"], abs=5e-6)
        assert mean.interval(0.95) == pytest.approx((expected["low"], expected["high"]), abs=5e-8)

    def test_variance_is_near_the_one_shot_estimate(self) -> None:
        mean = areas(self.ratings[:, self.truth], self.ratings[:, ~self.truth]).mean()
        assert mean.standard_error**2 == pytest.approx(self.data["imrmc"]["variance"], rel=0.01)

    def test_jackknife_gives_the_published_covariance(self) -> None:
        """Another way to the same quantity: it agrees with the program that uses it, and nearly with us."""
        cases = np.arange(114)
        left = [
            areas(self.ratings[:, self.truth & (cases != c)], self.ratings[:, ~self.truth & (cases != c)]).areas
            for c in cases
        ]
        covariance = np.cov(np.array(left).T) * 113**2 / 114
        off = ~np.eye(5, dtype=bool)
        assert covariance[off].mean() == pytest.approx(self.data["iowa"]["cov2"], abs=5e-9)
        ours = areas(self.ratings[:, self.truth], self.ratings[:, ~self.truth]).covariance
        assert ours[off].mean() == pytest.approx(self.data["iowa"]["cov2"], rel=0.02)


def test_covariance_of_paired_images_against_the_jackknife_over_cases() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 1, 40)
    generated = np.round(shared + rng.normal(0.4, 1, (3, 40)))
    real = np.round(shared + rng.normal(0, 1, (3, 40)))
    of = np.arange(40)
    found = areas(generated, real, of, of)
    left = [areas(generated[:, of != c], real[:, of != c]).areas for c in of]
    jackknife = np.cov(np.array(left).T) * 39**2 / 40
    np.testing.assert_allclose(found.covariance, jackknife, rtol=0.02, atol=2e-5)
    unpaired = areas(generated, real).covariance
    assert found.covariance[0, 0] < 0.8 * unpaired[0, 0]


def test_one_reader_speaks_for_herself_only() -> None:
    found = areas(np.array([[3.0, 4, 5, 2]]), np.array([[1.0, 2, 3, 1]]))
    assert found.mean().df == math.inf
    assert found.mean().standard_error == pytest.approx(math.sqrt(found.covariance[0, 0]))


def test_the_curve_encloses_the_area() -> None:
    rng = np.random.default_rng(5)
    ratings, truth = rng.integers(-5, 6, 60).astype(float), rng.random(60) < 0.5
    points = curve(ratings, truth)
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(roc_auc_score(truth, ratings))


@pytest.mark.parametrize(
    ("name", "groups"),
    [("reader + image", (0, 3)), ("reader + reader x arm + case + image", (0, 4, 1, 3))],
)
def test_ordinal_model_against_clmm(name: str, groups: tuple[int, ...]) -> None:
    expected = REFERENCES["clmm"][name]
    scores = np.array([[list(map(int, arm)) for arm in reader] for reader in REFERENCES["clmm"]["scores"]])
    reader, arm, case = (index.ravel() for index in np.indices(scores.shape))
    factors = (reader, case, arm, arm * 100 + case, arm * 100 + reader)
    predictors = np.stack([arm == 1, arm == 2], 1).astype(float)
    fit = fit_ordinal(scores.ravel(), predictors, [factors[place] for place in groups])
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(expected["log_likelihood"], abs=1e-4)
    assert fit.beta == pytest.approx(expected["beta"], abs=1e-3)
    assert fit.standard_errors == pytest.approx(expected["standard_errors"], abs=1e-3)
    assert fit.thresholds == pytest.approx(expected["thresholds"], abs=1e-3)
    assert fit.deviations == pytest.approx(expected["deviations"], abs=1e-3)


def test_ordinal_model_of_a_single_score_says_so() -> None:
    fit = fit_ordinal(np.full(6, 3), np.array([[0.0], [1.0]] * 3), [np.repeat([0, 1], 3)])
    assert not fit.converged
    assert np.isnan(fit.beta).all()


def test_krippendorffs_published_example() -> None:
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C to E: 0.743 nominal, 0.815 ordinal."""
    gap = math.nan
    table = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
            [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
        ]
    )
    assert krippendorff_alpha(table, NOMINAL) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(table) == pytest.approx(0.815, abs=5e-4)


def test_alpha_against_the_package_krippendorff() -> None:
    expected = REFERENCES["krippendorff"]
    table = digits(*REFERENCES["icc"]["scores"])
    for reader, image in expected["gaps"]:
        table[reader, image] = math.nan
    assert krippendorff_alpha(table) == pytest.approx(expected["ordinal"], rel=1e-12)
    assert krippendorff_alpha(table, NOMINAL) == pytest.approx(expected["nominal"], rel=1e-12)


def test_alpha_without_variation_does_not_exist() -> None:
    assert math.isnan(krippendorff_alpha(np.full((3, 5), 2.0)))
    assert math.isnan(krippendorff_alpha(np.full((3, 5), math.nan)))


def test_mean_kappa_against_scikit_learn() -> None:
    table = digits(*REFERENCES["icc"]["scores"])
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [cohen_kappa_score(table[a], table[b], weights="quadratic") for a, b in pairs]
    assert mean_kappa(table) == pytest.approx(np.mean(expected), rel=1e-12)
    assert math.isnan(mean_kappa(np.full((2, 4), 3.0)))


def test_icc_of_shrout_and_fleiss() -> None:
    """Shrout and Fleiss 1979, table 2 to 4: six targets, four judges, ICC(2,1) = 0.29."""
    table = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float).T
    found = intraclass_correlation(table)
    assert found.value == pytest.approx(0.29, abs=5e-3)
    assert (found.low, found.high) == pytest.approx((0.02, 0.76), abs=5e-3)


def test_icc_against_pingouin() -> None:
    expected = REFERENCES["icc"]
    found = intraclass_correlation(digits(*expected["scores"]))
    assert found.value == pytest.approx(expected["icc"], rel=1e-9)
    assert (found.low, found.high) == pytest.approx((expected["low"], expected["high"]), abs=5e-3)


def test_icc_that_does_not_exist() -> None:
    assert math.isnan(intraclass_correlation(np.full((3, 5), 2.0)).value)
    assert math.isnan(intraclass_correlation(np.full((3, 5), math.nan)).value)


def test_bootstrap_draws_cases_with_all_their_images() -> None:
    table = digits(*REFERENCES["icc"]["scores"])
    wide = bootstrap_interval(krippendorff_alpha, np.repeat(table, 3, 1), np.repeat(np.arange(15), 3), 200, 0)
    narrow = bootstrap_interval(krippendorff_alpha, np.repeat(table, 3, 1), np.arange(45), 200, 0)
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])
    assert wide[0] < krippendorff_alpha(table) < wide[1]
