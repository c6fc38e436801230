"""Fidelity and diversity apart: precision, recall, density and coverage of a set of generated images.

Sources: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019;
Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.two_samples import Features, checked_pair, random_halves

ROUNDING = 1e-11
"""Of squared distances, relative to these and to the squared lengths that they are differences of."""


@dataclass(frozen=True)
class Coverage:
    """Four fractions; all but density lie in [0, 1].

    Attributes:
        precision: of generated images that lie within the reach of a real one (its k-th real neighbour's distance).
        recall: of real images that lie within the reach of a generated one.
        density: real reaches that a generated image lies in, on average, divided by k; about 1 for equal sets.
        coverage: of real images that have a generated one within their reach.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_coverage(real: Features, fake: Features, neighbours: int = 5) -> Coverage:
    """Precision, recall, density and coverage.

    Args:
        real: (N, D) features, N above ``neighbours``.
        fake: (M, D) features, M above ``neighbours``.
        neighbours: k; how many neighbours set an image's reach.

    Raises:
        InputError: for too few images, differing D, or values that are not finite.
    """
    first, second = checked_pair(real, fake)
    if neighbours < 1 or min(len(first), len(second)) <= neighbours:
        raise InputError(
            f"coverage: more than {neighbours} images are needed on both sides, not {len(first)} and {len(second)}"
        )
    reach, other_reach = _reach(first, neighbours), _reach(second, neighbours)
    reaches_around = np.zeros(len(second))  # how many real reaches each generated image lies in
    covered, recalled = np.zeros(len(first), bool), np.zeros(len(first), bool)
    for rows, block in first.numbered_blocks():
        for columns, other in second.numbered_blocks():
            squared = _squared_distances(block, other)
            near = squared <= reach[rows, None]
            reaches_around[columns] += near.sum(axis=0)
            covered[rows] |= near.any(axis=1)
            recalled[rows] |= (squared <= other_reach[columns]).any(axis=1)
    return Coverage(
        precision=float((reaches_around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(reaches_around.mean() / neighbours),
        coverage=float(covered.mean()),
    )


# The four fractions are columns of their own, asked for one after the other, but come from one computation.
@lru_cache(maxsize=64)
def coverage_of_sets(real: FeatureRows, fake: FeatureRows, neighbours: int) -> Coverage:
    """:func:`manifold_coverage`, remembered."""
    return manifold_coverage(real, fake, neighbours)


@lru_cache(maxsize=4)
def coverage_of_halves(
    real: FeatureRows, fake: FeatureRows, neighbours: int, repeats: int, seed: int
) -> list[Coverage]:
    """The same of random halves of both sets, for the jackknife."""
    return [manifold_coverage(*pair, neighbours) for pair in random_halves(real, fake, repeats, seed)]


def _reach(features: FeatureRows, neighbours: int) -> np.ndarray:
    """Squared distance of each image to its k-th neighbour in its own set, and what rounding may add to it.

    A copy of that neighbour is as far away, but its distance comes out of other products, in another order: which of
    two equal numbers is the larger must not depend on the processor.
    """
    reach = []
    for block in features.blocks():
        nearest = np.full((len(block), neighbours + 1), np.inf)  # the image itself is one of them
        for other in features.blocks():
            candidates = np.concatenate([nearest, _squared_distances(block, other)], axis=1)
            nearest = np.partition(candidates, neighbours, axis=1)[:, : neighbours + 1]
        reach.append((1 + ROUNDING) * nearest.max(axis=1) + ROUNDING * np.square(block).sum(axis=1))
    return np.concatenate(reach)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1)
    return squares - 2.0 * first @ second.T
