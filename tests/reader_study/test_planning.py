from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from warm import run_python

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.__main__ import main
from nodule_plugin.reader_study.planning import equivalence_power, needed_cases, pilot_components
from nodule_plugin.reader_study.simulation import Truth, error_rates, rates_table, simulate_scores
from nodule_plugin.reader_study.statistics.crossed import Components, crossed_mean

TYPICAL = Components(0.04, 0.72, 1.0)


def test_power_against_the_formula_for_a_known_variance() -> None:
    """With many readers and cases t becomes normal: power = 2 Phi(margin / SE - z) - 1 (Chow, Shao, Wang 2008)."""
    components = Components(0.0, 40.0, 0.1)
    error = math.sqrt(40 / 400 + 0.1 / 400 / 50)
    expected = 2 * norm.cdf(1.0 / error - norm.ppf(0.95)) - 1
    assert equivalence_power(components, 50, 400, 1.0) == pytest.approx(expected, abs=5e-3)


def test_power_against_simulated_normal_studies() -> None:
    rng = np.random.default_rng(0)
    claims = 0
    for _ in range(1500):
        table = rng.normal(0, 0.2, (6, 1)) + rng.normal(0, math.sqrt(0.72), (1, 43)) + rng.normal(0, 1, (6, 43))
        claims += crossed_mean(table).p_equivalence(0.5) < 0.05
    assert claims / 1500 == pytest.approx(equivalence_power(TYPICAL, 6, 43, 0.5), abs=0.035)


def test_needed_cases_are_the_least_that_reach_the_power() -> None:
    few, six, ten = needed_cases(TYPICAL, [3, 6, 10], margin=0.5, power=0.8)
    assert few.cases is None  # three readers never suffice here: their own spread remains
    assert few.power < 0.8
    assert six.cases is not None
    assert equivalence_power(TYPICAL, 6, six.cases, 0.5) >= 0.8 > equivalence_power(TYPICAL, 6, six.cases - 1, 0.5)
    assert ten.cases is not None
    assert ten.cases < six.cases


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"readers": [1]}, "readers: 2 or more"),
        ({"readers": [3], "true_difference": 0.5}, "margin: 0.5 must be above the true difference"),
        ({"readers": [3], "power": 1.0}, "power 1"),
        ({"readers": [3], "components": Components(0, 0, 0)}, "one of them above 0"),
        ({"readers": [3], "components": Components(0.04, float("nan"), 1)}, "finite standard deviations"),
    ],
)
def test_plans_that_make_no_sense(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        needed_cases(**{"components": TYPICAL, "margin": 0.5, **arguments})  # type: ignore[arg-type]


def test_plan_from_a_pilot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    line = {"item": "realism", "model": "a", "var_reader": 0.04, "var_case": 0.72, "var_error": 1.0}
    file.write_text(json.dumps({"comparisons": [line, {**line, "model": "b", "var_error": None}]}))
    assert pilot_components(file, "realism") == TYPICAL
    with pytest.raises(InputError, match="no variances of realism for b"):
        pilot_components(file, "realism", "b")
    with pytest.raises(InputError, match="cannot be read"):
        pilot_components(tmp_path / "none.json", "realism")
    main(["plan", "--pilot", str(file), "--readers", "6"])
    assert "      6     43" in capsys.readouterr().out


def test_a_command_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nodule_plugin.reader_study", "plan", "--readers", "1"]
    run = run_python(command, tmp_path)
    assert run.returncode == 1
    assert run.stderr.splitlines() == ["error: readers: 2 or more are needed to speak of readers at large, not 1"]


def test_simulated_scores_have_the_mean_that_was_asked_for() -> None:
    truth = Truth()
    shift = truth.shift_for(0.5)
    scores = simulate_scores(truth, (0, shift), 300, 1500, np.random.default_rng(0))
    assert scores.mean((1, 2)) == pytest.approx([3.0, 3.5], abs=0.06)
    assert set(np.unique(scores)) == {1, 2, 3, 4, 5}


def test_pooling_is_wrong_more_often_than_the_analysis() -> None:
    rates = error_rates(readers=6, cases=20, studies=150, ordinal_studies=2, seed=1)
    assert rates.pooled > 0.14
    assert rates.crossed < 0.11
    assert rates.equivalence_error < 0.11
    assert rates.coverage > 0.88
    assert rates.equivalence_power == pytest.approx(rates.planned_power, abs=0.13)
    assert rates.ordinal is not None
    assert rates_table([rates]).count("\n") == 2


def test_simulations_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="2 readers, 2 cases and 1 study"):
        error_rates(1, 20, 10)
    with pytest.raises(InputError, match=r"simulate: margin nan .* alpha 0\.05"):
        error_rates(2, 3, 1, margin=float("nan"))
    with pytest.raises(InputError, match=r"simulate: margin 0\.5 .* alpha 5"):
        error_rates(2, 3, 1, alpha=5)
    with pytest.raises(InputError, match="seed: a whole number of 0 or above"):
        error_rates(2, 3, 1, seed=-1)
