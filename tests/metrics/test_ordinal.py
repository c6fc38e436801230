from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression

from nodule_plugin.metrics.ordinal import _loss, fit_ordinal, fit_with_chosen_penalty

WEIGHTS = np.array([2.0, -1.0, 0.0])
THRESHOLDS = np.array([-2.0, 0.0, 1.5, 3.0])


def _sample(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes 1 to 5 that follow the model exactly."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(count, 3))
    latent = rows @ WEIGHTS + draw.logistic(size=count)
    return rows, 1 + (latent[:, None] > THRESHOLDS).sum(axis=1)


def test_the_models_own_parameters_are_found() -> None:
    rows, codes = _sample(20_000)
    model = fit_ordinal(rows, codes, penalty=0.0)
    assert model.weights / model.scale == pytest.approx(WEIGHTS, abs=0.1)
    assert model.thresholds + model.mean @ (model.weights / model.scale) == pytest.approx(THRESHOLDS, abs=0.12)
    assert model.probabilities(rows).sum(axis=1) == pytest.approx(1.0)
    agreed = (model.predict(rows) == codes).mean()
    assert agreed > 1.4 * (codes == np.bincount(codes).argmax()).mean()


def test_two_codes_are_a_logistic_regression() -> None:
    rows, codes = _sample(300)
    yes = (codes > 2).astype(int)
    ours = fit_ordinal(rows, yes, penalty=0.02)
    standardised = (rows - ours.mean) / ours.scale
    theirs = LogisticRegression(C=1 / (0.02 * len(rows)), tol=1e-8).fit(standardised, yes)
    assert ours.probabilities(rows)[:, 1] == pytest.approx(theirs.predict_proba(standardised)[:, 1], abs=1e-3)


def test_gradient_is_that_of_the_loss() -> None:
    rows, codes = _sample(50)
    place = codes - 1
    free = np.array([0.3, -0.2, 0.1, -1.0, 0.2, 0.1, -0.3])
    error = check_grad(
        lambda x: _loss(x, rows, place, 0.1)[0], lambda x: _loss(x, rows, place, 0.1)[1], free, epsilon=1e-6
    )
    assert error < 1e-5


def test_penalty_is_chosen_on_other_patients() -> None:
    draw = np.random.default_rng(1)
    rows, codes = _sample(120)
    # Two equal images a patient: whoever left out one of them alone would learn the other by heart.
    rows, codes = np.repeat(np.hstack([rows, draw.normal(size=(120, 80))]), 2, axis=0), np.repeat(codes, 2)
    other, truth = _sample(500, 2)
    other = np.hstack([other, draw.normal(size=(500, 80))])
    chosen = fit_with_chosen_penalty(rows, codes, np.arange(240) // 2, [1e-6, 0.3, 1e3])
    weak, strong = fit_ordinal(rows, codes, 1e-6), fit_ordinal(rows, codes, 1e3)
    errors = [np.abs(model.expected(other) - truth).mean() for model in (weak, chosen, strong)]
    assert errors[1] < min(errors[0], errors[2])


def test_codes_that_never_occurred_are_never_read() -> None:
    rows, codes = _sample(200)
    model = fit_ordinal(rows, np.where(codes > 3, 5, 1), 0.01)
    assert set(model.predict(rows)) == {1, 5}
