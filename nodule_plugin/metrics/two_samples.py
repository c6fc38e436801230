"""What every comparison of two sets of features needs: checks of what was given, and the delete-half jackknife.

Source: Shao and Wu, "A general theory for jackknife variance estimation", Ann Stat 1989;17:1176-1197.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError

Features = Tensor | np.ndarray | FeatureRows
"""(N, D) features of N images."""
MIN_IMAGES = 2
"""Fewer images have no covariance and no unbiased kernel mean."""


def checked_pair(real: Features, fake: Features) -> tuple[FeatureRows, FeatureRows]:
    """Both sets as rows of float64.

    Raises:
        InputError: for fewer than two images, differing D, or values that are not finite.
    """
    first, second = _checked(real, "real"), _checked(fake, "generated")
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"features: real images have {first.shape[1]} per image, generated ones {second.shape[1]}; "
            "take both from one extractor"
        )
    return first, second


def _checked(features: Features, name: str) -> FeatureRows:
    if not isinstance(features, FeatureRows):
        shape = tuple(features.shape)
        if len(shape) != 2:
            raise InputError(f"features of {name} images: a table of (images, dimensions) is needed, not shape {shape}")
        features = FeatureRows(features)
    if len(features) < MIN_IMAGES:
        raise InputError(f"features of {name} images: {len(features)} image, {MIN_IMAGES} needed")
    start = 0
    for block in features.blocks():
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            bad = start + int(np.flatnonzero(~finite)[0])
            raise InputError(f"features of {name} images: image {bad} has values that are not finite; check that image")
        start += len(block)
    return features


def half_sample_error(
    statistic: Callable[[FeatureRows, FeatureRows], float],
    real: Features,
    fake: Features,
    repeats: int = 50,
    seed: int = 0,
) -> float:
    """Standard error of a two-sample statistic by the delete-half jackknife.

    Random halves are drawn without replacement from both sets; for halves the jackknife's scale factor is 1, so that
    the standard deviation over them is the error of the whole. The bootstrap is no alternative here: the copies it
    draws make two images equal, which biases distances upwards.

    Args:
        statistic: of (N, D) and (M, D) features.
        real: (N, D) features, N >= 4.
        fake: (M, D) features, M >= 4.
        repeats: how many pairs of halves.
        seed: of the draw.

    Returns:
        The standard error in the statistic's own unit; NaN where a half would hold fewer than two images.
    """
    first, second = checked_pair(real, fake)
    if min(len(first), len(second)) < 2 * MIN_IMAGES:
        return float("nan")
    values = [statistic(*pair) for pair in random_halves(first, second, repeats, seed)]
    return float(np.std(values, ddof=1))


def random_halves(
    first: FeatureRows, second: FeatureRows, repeats: int, seed: int
) -> Iterator[tuple[FeatureRows, FeatureRows]]:
    """A random half of either set, ``repeats`` times."""
    draw = np.random.default_rng(seed)
    for _ in range(repeats):
        yield _half(first, draw), _half(second, draw)


def _half(features: FeatureRows, draw: np.random.Generator) -> FeatureRows:
    return features.take(draw.choice(len(features), len(features) // 2, replace=False))
