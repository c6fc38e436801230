"""Fréchet distance between two sets of features, its standard error, and its value for endless sets.

Sources: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS
2017 (FID); Chong and Forsyth, "Effectively Unbiased FID and Inception Score and Where to Find Them", CVPR 2020,
arXiv:1911.07023 (extrapolation).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.two_samples import MIN_IMAGES, Features, checked_pair, half_sample_error

POINTS = 15
"""Sizes that the extrapolation measures, as in Chong and Forsyth's code."""
SMALLEST_PIVOT = 1e-6
"""Relative to the largest: below it the covariance, which holds squares, has lost half of its digits."""


class Gaussian(NamedTuple):
    """Mean (D,) of a set of features, and a root (R, D) of its sample covariance: ``root^T root`` is the covariance."""

    mean: np.ndarray
    root: np.ndarray


class Extrapolation(NamedTuple):
    """The distance for endlessly many images.

    Attributes:
        value: the intercept of a line through the distances of smaller sets against 1 / size.
        error: its standard error: the sampling of the images, and the scatter about the line.
        sizes: fraction of each set that was taken, ascending to 1.
        distances: at each of them.
    """

    value: float
    error: float
    sizes: list[float]
    distances: list[float]


def frechet_distance(real: Features, fake: Features) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with the sample covariances S. The last trace is the sum of the
    singular values of ``A1 A2^T`` where ``S = A^T A``, which needs no matrix root, stays real for fewer images than
    dimensions, and is as cheap as the fewer of the two allow. Features are read block by block.

    Args:
        real: (N, D) features, N >= 2.
        fake: (M, D) features, M >= 2.

    Returns:
        The distance, 0 or more, in squared units of the features.

    Raises:
        InputError: for fewer than two images, differing D, or values that are not finite.
    """
    first, second = checked_pair(real, fake)
    return distance_of_gaussians(fit_gaussian(first), fit_gaussian(second))


def distance_of_gaussians(first: Gaussian, second: Gaussian) -> float:
    """The squared 2-Wasserstein distance of two Gaussians."""
    cross = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    spread = np.square(first.root).sum() + np.square(second.root).sum()
    return float(max(np.square(first.mean - second.mean).sum() + spread - 2.0 * cross, 0.0))


@lru_cache(maxsize=2)  # the distance and its error ask for the same two, one set is compared with many
def fit_gaussian(features: FeatureRows) -> Gaussian:
    """Mean and covariance of N >= 2 features; never more than D rows and a block in memory.

    The root has N rows, or is triangular with D rows where N is larger.
    """
    count, dimensions = features.shape
    mean = np.sum([block.sum(axis=0) for block in features.blocks()], axis=0) / count
    if count <= dimensions:
        return Gaussian(mean, (features.read() - mean) / np.sqrt(count - 1))
    covariance = np.zeros((dimensions, dimensions))
    for block in features.blocks():
        centred = block - mean
        covariance += centred.T @ centred
    return Gaussian(mean, _triangular_root(features, mean, covariance / (count - 1)))


def _triangular_root(features: FeatureRows, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """By Cholesky's factorisation, or from the features themselves where the covariance is singular or nearly so."""
    try:
        root = np.asarray(np.linalg.cholesky(covariance).T)
    except np.linalg.LinAlgError:
        return _root_of_rows(features, mean)
    return root if _is_regular(root) else _root_of_rows(features, mean)


def _is_regular(root: np.ndarray) -> bool:
    """Whether a triangular root (D, D) has an inverse worth the name."""
    pivots = np.abs(np.diag(root))
    return bool(pivots.min() > SMALLEST_PIVOT * pivots.max())


def _root_of_rows(features: FeatureRows, mean: np.ndarray) -> np.ndarray:
    dimensions = features.shape[1]
    root = np.empty((0, dimensions))
    for block in features.blocks(max(2 * dimensions, 1024)):
        # The triangular factor of all rows so far: as exact as one factorisation of the whole, and three times slower
        # than Cholesky's.
        root = np.asarray(np.linalg.qr(np.concatenate([root, block - mean]), mode="r"))
    return root / np.sqrt(len(features) - 1)


def with_weight(features: np.ndarray) -> np.ndarray:
    """(N, D) features as (N, D + 1) rows that can be condensed and joined, see :func:`condensed`."""
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)


def condensed(rows: np.ndarray) -> np.ndarray:
    """At most D + 1 rows with the same products as (N, D + 1) ``rows``: all that a Gaussian needs to know of them.

    The triangular factor of the rows. What was condensed can be joined with other rows and condensed again, without
    loss: memory does not grow with the images, whoever joins them.
    """
    return np.asarray(np.linalg.qr(rows, mode="r")) if len(rows) > rows.shape[1] else rows


def gaussian_of_rows(rows: np.ndarray) -> Gaussian:
    """Mean and covariance of the images whose features :func:`with_weight` and :func:`condensed` made ``rows``.

    Raises:
        InputError: for fewer than two images, or values that are not finite.
    """
    weights, values = rows[:, 0], rows[:, 1:]
    if not np.isfinite(rows).all():
        raise InputError("features: there are values that are not finite; check the images")
    count = float(np.square(weights).sum())
    if round(count) < MIN_IMAGES:
        raise InputError(f"features: {round(count)} image, {MIN_IMAGES} needed")
    mean = weights @ values / count
    return Gaussian(mean, (values - np.outer(weights, mean)) / np.sqrt(count - 1))


def frechet_error(real: Features, fake: Features, repeats: int = 50, seed: int = 0) -> float:
    """Standard error of :func:`frechet_distance`.

    Where both sets hold more than twice as many images as there are dimensions, by the delta method: the distance's
    derivative with respect to each image, which costs as much as the distance itself. For fewer images, and where a
    feature is constant or follows from others, covariances have no inverse: then by the delete-half jackknife.

    Args:
        real, fake: see :func:`frechet_distance`.
        repeats, seed: of the jackknife, see :func:`half_sample_error`.

    Returns:
        The standard error; NaN where there are too few images for it.
    """
    first, second = checked_pair(real, fake)
    if min(len(first), len(second)) > 2 * first.shape[1]:
        one, other = fit_gaussian(first), fit_gaussian(second)
        if _is_regular(one.root) and _is_regular(other.root):
            return _delta_error(first, second, one, other)
    return half_sample_error(frechet_distance, first, second, repeats, seed)


def _delta_error(first: FeatureRows, second: FeatureRows, one: Gaussian, other: Gaussian) -> float:
    """From the influence of each image: with the optimal maps T of one Gaussian onto the other, it is

    ``|x|^2 - x^T T x`` for the covariance and ``2 (own mean - other mean) x`` for the mean, x centred.
    """
    left, singular, right = np.linalg.svd(one.root @ other.root.T)
    variance = 0.0
    for rows, own, target, vectors in ((first, one, other, left), (second, other, one, right.T)):
        # T = B B^T with B = R^-1 V s^(1/2), where R is the own triangular root.
        root_of_map = solve_triangular(own.root, vectors * np.sqrt(singular))
        shift = 2.0 * (own.mean - target.mean)
        influence = np.concatenate(
            [
                centred @ shift + np.square(centred).sum(axis=1) - np.square(centred @ root_of_map).sum(axis=1)
                for centred in (block - own.mean for block in rows.blocks())
            ]
        )
        variance += influence.var(ddof=1) / len(rows)
    return float(np.sqrt(variance))


def enough_to_extrapolate(real: int, fake: int, dimensions: int) -> bool:
    """Whether the smallest sets that the extrapolation takes still hold more images than there are dimensions."""
    return min(real, fake) >= 2 * dimensions + 2


def extrapolate_frechet_distance(real: Features, fake: Features, repeats: int = 50, seed: int = 0) -> Extrapolation:
    """The Fréchet distance for endlessly many images: FID-infinity.

    The distance of N images is larger than that of endlessly many by a term in 1 / N. It is measured on random subsets
    of both sets, from half of them to all, and a straight line against 1 / size is read off at 0. Chong and Forsyth
    vary generated images only, since their real ones are as good as endless; here both sets are small, so both shrink.

    Args:
        real, fake: see :func:`frechet_distance`; at least twice as many images as dimensions on either side, since
            the bias of fewer images is no straight line.
        repeats: see :func:`frechet_error`.
        seed: of the subsets.

    Raises:
        InputError: for too few images.
    """
    first, second = checked_pair(real, fake)
    if not enough_to_extrapolate(len(first), len(second), first.shape[1]):
        raise InputError(
            f"Fréchet distance: {len(first)} and {len(second)} images of {first.shape[1]} features cannot be "
            "extrapolated; at least twice as many images as features are needed"
        )
    draw = np.random.default_rng(seed)
    sizes = np.linspace(0.5, 1.0, POINTS)
    subsets = [[_subset(rows, size, draw) for rows in (first, second)] for size in sizes]
    distances = np.array([frechet_distance(*pair) for pair in subsets])
    (_, intercept), spread = np.polyfit(1.0 / sizes, distances, 1, cov=True)
    error = np.hypot(frechet_error(first, second, repeats, seed), np.sqrt(spread[1, 1]))
    return Extrapolation(float(intercept), float(error), sizes.tolist(), distances.tolist())


def _subset(features: FeatureRows, size: float, draw: np.random.Generator) -> FeatureRows:
    return features.take(draw.permutation(len(features))[: round(size * len(features))])
