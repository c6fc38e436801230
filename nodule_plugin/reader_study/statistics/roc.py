"""Area under the curve for several readers and cases, both random.

A reader's area is the chance that a generated image is rated above a real one, ties counted half. Its covariances come
from DeLong's structural components (DeLong et al. 1988, Biometrics 44:837-845), summed over images that show the same
findings, which are not independent (Obuchowski 1997, Biometrics 53:567-578). The mean over readers and its interval
follow Obuchowski and Rockette (1995, Commun Stat Simul 24:285-308) for one test, with the degrees of freedom of Hillis
(2007, Stat Med 26:596-619; one test: Hillis 2014, Stat Med 33:330-360).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nodule_plugin.reader_study.statistics.interval import Estimate


@dataclass(frozen=True)
class Areas:
    """Areas of several readers on the same images.

    Attributes:
        areas: (readers,).
        covariance: (readers, readers), due to the sample of cases.
    """

    areas: np.ndarray
    covariance: np.ndarray

    def mean(self) -> Estimate:
        """The mean over readers, as an estimate for all readers and cases; of one reader, for all cases only."""
        readers = len(self.areas)
        if readers == 1:
            return Estimate(float(self.areas[0]), math.sqrt(self.covariance[0, 0]), math.inf)
        between = float(self.areas.var(ddof=1))
        shared = readers * max(0.0, float(self.covariance[~np.eye(readers, dtype=bool)].mean()))
        error = math.sqrt((between + shared) / readers)
        df = (between + shared) ** 2 * (readers - 1) / between**2 if between > 0 else math.inf
        return Estimate(float(self.areas.mean()), error, df)


def areas(
    generated: np.ndarray,
    real: np.ndarray,
    generated_cases: np.ndarray | None = None,
    real_cases: np.ndarray | None = None,
) -> Areas:
    """Each reader's area, and their covariances.

    Args:
        generated, real: (readers, images) ratings, higher for "generated".
        generated_cases, real_cases: (images,) which findings an image shows; by default each its own.
    """
    above = np.stack(
        [(g[:, None] > r).astype(float) + 0.5 * (g[:, None] == r) for g, r in zip(generated, real)]
    )  # (readers, generated, real)
    area = above.mean((1, 2))
    if generated_cases is None or real_cases is None:
        generated_cases, real_cases = np.arange(generated.shape[1]), np.arange(real.shape[1]) + generated.shape[1]
    cases = np.unique(np.concatenate([generated_cases, real_cases]))
    first = _by_case(above.mean(2) - area[:, None], generated_cases, cases) / generated.shape[1]
    second = _by_case(above.mean(1) - area[:, None], real_cases, cases) / real.shape[1]
    both = np.isin(cases, generated_cases) & np.isin(cases, real_cases)
    covariance = _spread(first, first, len(np.unique(generated_cases)))
    covariance += _spread(second, second, len(np.unique(real_cases)))
    if both.any():
        shared = _spread(first, second, len(cases))
        covariance += shared + shared.T
    return Areas(area, covariance)


def _by_case(components: np.ndarray, of: np.ndarray, cases: np.ndarray) -> np.ndarray:
    """(readers, images) summed to (readers, cases)."""
    return components @ (of[:, None] == cases).astype(float)


def _spread(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    return first @ second.T * count / (count - 1)


def curve(ratings: np.ndarray, is_generated: np.ndarray) -> np.ndarray:
    """The empirical curve of one reader.

    Args:
        ratings: (images,), higher for "generated".
        is_generated: (images,).

    Returns:
        (points, 2): fractions of real and of generated images that are called generated; from (0, 0) to (1, 1).
    """
    points = [(0.0, 0.0)]
    for limit in sorted(set(ratings.tolist()), reverse=True):
        points.append(tuple(float((ratings[mask] >= limit).mean()) for mask in (~is_generated, is_generated)))  # type: ignore[arg-type]
    return np.array(points)
