"""Fidelity and diversity apart: precision, recall, density and coverage of a set of generated images.

Sources: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019;
Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.distribution import Features, checked_pair


@dataclass(frozen=True)
class Coverage:
    """Four shares; all but density lie in [0, 1].

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
    between = cdist(first, second)
    within_real = between <= _reach(first, neighbours)[:, None]
    within_fake = between <= _reach(second, neighbours)[None, :]
    return Coverage(
        precision=float(within_real.any(axis=0).mean()),
        recall=float(within_fake.any(axis=1).mean()),
        density=float(within_real.sum(axis=0).mean() / neighbours),
        coverage=float(within_real.any(axis=1).mean()),
    )


def _reach(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each image to its k-th neighbour in its own set."""
    return np.partition(cdist(features, features), neighbours, axis=1)[:, neighbours]
