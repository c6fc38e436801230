"""A cumulative logit model with random effects: ordered scores of several readers on several images.

``P(score <= k) = logistic(threshold[k] - x beta - sum of random effects)``, the effects normal and crossed. The
likelihood is integrated over them by Laplace's approximation, as ``clmm`` of the R package ordinal does with its
default ``nAGQ = 1`` (Christensen 2019, "Cumulative Link Models for Ordinal Regression with the R Package ordinal"),
with which it is compared in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import expit

_STEPS = 100
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class OrdinalFit:
    """A fitted model.

    Attributes:
        beta: (predictors,), log odds ratios of a higher score.
        standard_errors: (predictors,), from the observed information.
        thresholds: (codes - 1,), rising.
        deviations: standard deviation of each group of random effects.
        log_likelihood: at the maximum.
        converged: whether the maximum was found.
    """

    beta: np.ndarray
    standard_errors: np.ndarray
    thresholds: np.ndarray
    deviations: np.ndarray
    log_likelihood: float
    converged: bool


def fit_ordinal(scores: np.ndarray, predictors: np.ndarray, groups: Sequence[np.ndarray]) -> OrdinalFit:
    """Fit the model by maximum likelihood.

    Args:
        scores: (answers,), any ordered codes; those that do not occur are left out.
        predictors: (answers, predictors), such as 1 for a model's images and 0 for real ones.
        groups: for each group of random effects (answers,) the level of each answer, such as the reader.
    """
    codes, y = np.unique(scores, return_inverse=True)
    if len(codes) < 2:
        nothing = np.full(predictors.shape[1], math.nan)
        return OrdinalFit(nothing, nothing, np.empty(0), np.full(len(groups), math.nan), math.nan, False)
    likelihood = _Laplace(y, predictors, groups, len(codes) - 1)
    maximum = minimize(likelihood, likelihood.start(), method="BFGS", options={"gtol": 1e-4, "maxiter": 500})
    gradient, information = _derivatives(likelihood, maximum.x)
    covariance = np.linalg.pinv(information)
    with np.errstate(invalid="ignore"):  # a negative variance: not at a maximum
        errors = np.sqrt(np.diag(covariance))
    thresholds, beta, deviations = likelihood.split(maximum.x)
    first = len(thresholds)
    return OrdinalFit(
        beta=beta,
        standard_errors=errors[first : first + len(beta)],
        thresholds=thresholds,
        deviations=np.abs(deviations),
        log_likelihood=-float(maximum.fun),
        # What a Newton step would still gain: BFGS on numerical derivatives may report a lack of precision where it
        # has in truth arrived.
        converged=bool(abs(gradient @ covariance @ gradient) / 2 < 1e-3),
    )


class _Laplace:
    """Minus the log likelihood, as a function of thresholds (the first, then log steps), beta and deviations."""

    def __init__(self, y: np.ndarray, predictors: np.ndarray, groups: Sequence[np.ndarray], thresholds: int) -> None:
        self.y, self.x, self.thresholds, self.groups = y, predictors.astype(float), thresholds, len(groups)
        levels = [np.unique(group, return_inverse=True)[1] for group in groups]
        sizes = [int(level.max()) + 1 for level in levels]
        first = np.cumsum([0, *sizes])
        # Which random effects an answer has, one a group: (answers, groups), numbered through all groups.
        self.effects = np.stack([level + start for level, start in zip(levels, first)], axis=1)
        self.count = int(first[-1])
        self.pairs = (self.effects[:, :, None] * self.count + self.effects[:, None, :]).ravel()
        self.modes = np.zeros(self.count)

    def start(self) -> np.ndarray:
        """Thresholds from the scores' distribution, no effect of the predictors, moderate deviations."""
        below = np.cumsum(np.bincount(self.y))[:-1] / len(self.y)
        logits = np.log(below / (1 - below))
        steps = np.log(np.maximum(np.diff(logits), 1e-3))
        return np.concatenate([logits[:1], steps, np.zeros(self.x.shape[1]), np.full(self.groups, 0.5)])

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds, beta, deviations."""
        first, steps = values[:1], values[1 : self.thresholds]
        thresholds = np.concatenate([first, first + np.cumsum(np.exp(steps))])
        beta, deviations = np.split(values[self.thresholds :], [self.x.shape[1]])
        return thresholds, beta, deviations

    def __call__(self, values: np.ndarray) -> float:
        thresholds, beta, deviations = self.split(values)
        ends = np.concatenate([[-np.inf], thresholds, [np.inf]])
        upper, lower = ends[self.y + 1] - self.x @ beta, ends[self.y] - self.x @ beta
        value, curvature = self._integrate(upper, lower, deviations)
        return -(value - float(np.log(np.diag(curvature)).sum()))

    def _integrate(self, upper: np.ndarray, lower: np.ndarray, deviations: np.ndarray) -> tuple[float, np.ndarray]:
        """The mode of the standardised random effects by Newton's method: the joint log density there and the Cholesky
        factor of its curvature. Every answer has one effect a group, which makes sums over answers cheap."""
        modes, squares = self.modes, np.outer(deviations, deviations).ravel()
        value = self._log_density(upper, lower, deviations, modes)
        for _ in range(_STEPS):
            effect = modes[self.effects] @ deviations
            above, below = expit(upper - effect), expit(lower - effect)
            slope = np.outer(above + below - 1, deviations).ravel()
            gradient = np.bincount(self.effects.ravel(), slope, self.count) - modes
            weights = np.outer(above * (1 - above) + below * (1 - below), squares).ravel()
            curvature = np.bincount(self.pairs, weights, self.count**2).reshape(self.count, self.count)
            factor = cho_factor(np.eye(self.count) + curvature, lower=True)
            step = cho_solve(factor, gradient)
            fraction = 1.0
            while fraction > 1e-6:
                trial = self._log_density(upper, lower, deviations, modes + fraction * step)
                if trial >= value - 1e-12:
                    break
                fraction /= 2
            modes, value = modes + fraction * step, trial
            if np.abs(step).max() < _TOLERANCE:
                break
        self.modes = modes
        return value, factor[0]

    def _log_density(self, upper: np.ndarray, lower: np.ndarray, deviations: np.ndarray, modes: np.ndarray) -> float:
        effect = modes[self.effects] @ deviations
        chance = expit(upper - effect) - expit(lower - effect)
        return float(np.log(np.maximum(chance, 1e-300)).sum() - modes @ modes / 2)


def _derivatives(function: _Laplace, at: np.ndarray, step: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivatives by central differences."""
    count = len(at)
    moves = np.eye(count) * step
    gradient, hessian = np.empty(count), np.empty((count, count))
    middle = function(at)
    for i in range(count):
        above, below = function(at + moves[i]), function(at - moves[i])
        gradient[i] = (above - below) / (2 * step)
        hessian[i, i] = (above - 2 * middle + below) / step**2
        for j in range(i):
            corners = [function(at + a * moves[i] + b * moves[j]) * a * b for a in (1, -1) for b in (1, -1)]
            hessian[i, j] = hessian[j, i] = sum(corners) / (4 * step**2)
    return gradient, hessian
