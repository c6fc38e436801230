"""Regression on an ordinal scale: the cumulative-link (proportional odds) model, with a ridge penalty.

Source: McCullagh, "Regression models for ordinal data", J R Stat Soc B 1980;42:109-142.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.model_selection import GroupKFold

FOLDS = 5


@dataclass(frozen=True)
class OrdinalRegression:
    """``P(code <= k) = 1 / (1 + exp(-(threshold_k - w.x)))`` on standardised features.

    Attributes:
        codes: (K,) the scale's codes that occurred in training, ascending.
        weights: (D,) of the standardised features; a larger product means a higher code.
        thresholds: (K - 1,) ascending.
        mean, scale: (D,) of the training features.
    """

    codes: np.ndarray
    weights: np.ndarray
    thresholds: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, K) probability of each code."""
        # Row by row: a product of matrices may give equal images other last bits, by their place in the set.
        score = ((features - self.mean) / self.scale * self.weights).sum(axis=1)
        below = expit(self.thresholds - score[:, None])
        ends = np.zeros((len(features), 1)), np.ones((len(features), 1))
        return np.diff(np.concatenate([ends[0], below, ends[1]], axis=1), axis=1)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N,) codes: the median of each distribution, which errs least in steps of the scale."""
        below = np.cumsum(self.probabilities(features), axis=1)
        return self.codes[(below < 0.5).sum(axis=1).clip(max=len(self.codes) - 1)]

    def expected(self, features: np.ndarray) -> np.ndarray:
        """(N,) mean of each distribution, in steps of the scale; to nine decimals, so that equal images read equal."""
        return (self.probabilities(features) * self.codes).sum(axis=1).round(9)


def fit_ordinal(features: np.ndarray, codes: np.ndarray, penalty: float) -> OrdinalRegression:
    """The penalised maximum likelihood.

    Args:
        features: (N, D).
        codes: (N,) whole numbers, at least two different ones.
        penalty: of half the squared length of the weights, against the mean negative log likelihood of an image; the
            thresholds are free.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, 1.0)
    rows = (features - mean) / scale
    known, level = np.unique(codes, return_inverse=True)
    below = np.cumsum(np.bincount(level))[:-1] / len(level)
    start = np.log(below / (1 - below))
    # Thresholds as a first one and logarithms of steps: they stay in order whatever the optimiser tries.
    free = np.concatenate([np.zeros(rows.shape[1]), start[:1], np.log(np.diff(start))])
    best = minimize(_loss, free, args=(rows, level, penalty), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    weights, steps = best.x[: rows.shape[1]], best.x[rows.shape[1] :]
    return OrdinalRegression(known, weights, _thresholds(steps), mean, scale)


def _thresholds(steps: np.ndarray) -> np.ndarray:
    return np.cumsum(np.concatenate([steps[:1], np.exp(steps[1:])]))


def _loss(free: np.ndarray, rows: np.ndarray, level: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
    """Mean negative log likelihood with the penalty, and its gradient."""
    count, dimensions = rows.shape
    weights, steps = free[:dimensions], free[dimensions:]
    thresholds = _thresholds(steps)
    last = len(thresholds)
    score = rows @ weights
    upper = np.where(level < last, thresholds[level.clip(max=last - 1)] - score, np.inf)
    lower = np.where(level > 0, thresholds[(level - 1).clip(min=0)] - score, -np.inf)
    # log(F(u) - F(l)) = log F(u) + log F(-l) + log(1 - exp(l - u)): no difference of nearly equal numbers.
    gap = np.log(-np.expm1(lower - upper))
    likelihood = log_expit(upper) + log_expit(-lower) + gap
    probability = np.exp(likelihood)
    slope_upper = _density(upper) / probability
    slope_lower = _density(lower) / probability
    to_thresholds = np.zeros(last)
    np.add.at(to_thresholds, level[level < last], slope_upper[level < last])
    np.add.at(to_thresholds, level[level > 0] - 1, -slope_lower[level > 0])
    # A step moves every threshold from its own on.
    from_here = np.cumsum(to_thresholds[::-1])[::-1]
    to_steps = from_here * np.concatenate([[1.0], np.exp(steps[1:])])
    to_weights = rows.T @ -(slope_upper - slope_lower)
    loss = -likelihood.mean() + penalty / 2 * weights @ weights
    gradient = -np.concatenate([to_weights, to_steps]) / count
    gradient[:dimensions] += penalty * weights
    return float(loss), gradient


def _density(values: np.ndarray) -> np.ndarray:
    return expit(values) * expit(-values)


def fit_with_chosen_penalty(
    features: np.ndarray, codes: np.ndarray, groups: np.ndarray, penalties: Sequence[float]
) -> OrdinalRegression:
    """The penalty that predicts images of other patients best, by the mean absolute error in steps of the scale.

    Args:
        features: (N, D).
        codes: (N,) whole numbers, at least two different ones.
        groups: (N,) patients; their images are left out together.
        penalties: to choose from.
    """
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        return fit_ordinal(features, codes, penalties[-1])
    errors = np.zeros(len(penalties))
    for kept, left in GroupKFold(folds).split(features, codes, groups):
        if len(np.unique(codes[kept])) < 2:
            continue
        for index, penalty in enumerate(penalties):
            read = fit_ordinal(features[kept], codes[kept], penalty).expected(features[left])
            errors[index] += np.abs(read - codes[left]).sum()
    return fit_ordinal(features, codes, penalties[int(errors.argmin())])
