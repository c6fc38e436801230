"""Kernel distances between two sets of features: KID's, and CMMD's on CLIP embeddings, with their standard errors.

Sources: Binkowski et al., "Demystifying MMD GANs", ICLR 2018 (KID); Jayasumana et al., "Rethinking FID: Towards a
Better Evaluation Metric for Image Generation", CVPR 2024, arXiv:2401.09603 (CMMD).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.two_samples import MIN_IMAGES, Features, checked_pair

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, D) and (M, D) features -> (N, M) values of the kernel."""
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0


class KernelDistance(NamedTuple):
    """Mean and standard deviation of the kernel distance over random subsets."""

    mean: float
    std: float


def polynomial_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KID's ``(x.y / D + 1)^3``."""
    # A square and a product: NumPy's power of 3 is twenty times slower.
    base = first @ second.T / first.shape[1] + 1.0
    return base * base * base


def gaussian_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """CMMD's ``exp(-|x - y|^2 / (2 sigma^2))`` of embeddings brought to length 1, sigma 10."""
    one, other = _unit(first), _unit(second)
    squared = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1) - 2.0 * one @ other.T
    return np.exp(-squared / (2.0 * CMMD_SIGMA**2))


def kernel_distance(
    real: Features, fake: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID's distance: the unbiased squared maximum mean discrepancy with :func:`polynomial_kernel`, over subsets.

    The subsets are drawn as torch-fidelity draws them (NumPy's RandomState, real first), so that one seed gives the
    same number in both. Where a set has fewer images than ``subset_size``, the smaller set's size is used instead.

    Args:
        real: (N, D) features, N >= 2.
        fake: (M, D) features, M >= 2.
        subsets: how many subsets are drawn.
        subset_size: images in each of them, of either kind.
        seed: of the draw.

    Returns:
        Mean and standard deviation over the subsets. The mean may be slightly negative, and is so for a set compared
        with itself: the estimate is unbiased for sets drawn independently. The standard deviation is one of subsets
        and is 0 where a subset holds everything; for the error of the mean see :func:`kernel_error`.

    Raises:
        InputError: for fewer than two images, differing D, values that are not finite, or senseless subsets.
    """
    first, second = checked_pair(real, fake)
    size = min(subset_size, len(first), len(second))
    if subsets < 1 or size < MIN_IMAGES:
        raise InputError(
            f"kernel distance: subsets must be 1 or more and subset_size 2 or more, not {subsets} and {subset_size}"
        )
    if size == len(first) == len(second):
        return KernelDistance(squared_mmd(first, second), 0.0)
    draw = np.random.RandomState(seed)  # torch-fidelity's generator, for the same subsets
    distances = [
        squared_mmd(*(rows.take(draw.choice(len(rows), size, replace=False)) for rows in (first, second)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)))


def squared_mmd(real: Features, fake: Features) -> float:
    """The unbiased squared maximum mean discrepancy of all images, with KID's kernel; see :func:`kernel_distance`."""
    return _sums(*checked_pair(real, fake), polynomial_kernel).distance(unbiased=True)


def cmmd(real: Features, fake: Features) -> float:
    """CMMD: 1000 times the squared maximum mean discrepancy of CLIP embeddings with :func:`gaussian_kernel`.

    As in the authors' code, the estimate is the one that takes each image with itself too: it is 0 or more, 0 for
    equal sets, and biased upwards for small ones.

    Args:
        real, fake: (N, D) and (M, D) CLIP embeddings, of any length; at least two of each.

    Raises:
        InputError: for fewer than two images, differing D, or values that are not finite.
    """
    return CMMD_SCALE * _sums(*checked_pair(real, fake), gaussian_kernel).distance(unbiased=False)


def kernel_error(real: Features, fake: Features) -> float:
    """Standard error of :func:`kernel_distance`, see :meth:`KernelSums.error`; NaN for fewer than four images."""
    return _sums(*checked_pair(real, fake), polynomial_kernel).error(unbiased=True)


def cmmd_error(real: Features, fake: Features) -> float:
    """Standard error of :func:`cmmd`, see :meth:`KernelSums.error`; NaN for fewer than four images."""
    return CMMD_SCALE * _sums(*checked_pair(real, fake), gaussian_kernel).error(unbiased=False)


class KernelSums(NamedTuple):
    """The kernel of all pairs of images, summed up for each image.

    Attributes:
        within: for either set (N,) sums over the other images of the set.
        itself: for either set (N,) kernel of an image with itself.
        between: for either set (N,) sums over the images of the other set.
    """

    within: tuple[np.ndarray, np.ndarray]
    itself: tuple[np.ndarray, np.ndarray]
    between: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, first: FeatureRows, second: FeatureRows, kernel: Kernel) -> KernelSums:
        """Sum up; two blocks of features are in memory at a time."""
        own = [_sums_within(rows, kernel) for rows in (first, second)]
        between = np.zeros(len(first)), np.zeros(len(second))
        for rows, block in first.numbered_blocks():
            for columns, other in second.numbered_blocks():
                values = kernel(block, other)
                between[0][rows] += values.sum(axis=1)
                between[1][columns] += values.sum(axis=0)
        return cls((own[0][0], own[1][0]), (own[0][1], own[1][1]), between)

    def distance(self, unbiased: bool) -> float:
        """The squared maximum mean discrepancy of all images."""
        within = 0.0
        for sums, itself in zip(self.within, self.itself):
            count = len(sums)
            within += sums.sum() / (count * (count - 1)) if unbiased else (sums.sum() + itself.sum()) / count**2
        return float(within - 2.0 * self.between[0].sum() / (len(self.between[0]) * len(self.between[1])))

    def error(self, unbiased: bool) -> float:
        """Standard error of :meth:`distance` by the delete-one jackknife of both sets; NaN for fewer than four images.

        Each image is left out in turn, which the sums give without another kernel. Nothing is drawn, so that the error
        is the same every time; for equal sets, where the distance has no linear part, it is about 1.4 times too large
        (halves of the sets, the other jackknife, make it 1.7 times).
        """
        if min(len(sums) for sums in self.within) < 2 * MIN_IMAGES:
            return float("nan")
        variance = 0.0
        for sums, itself, between, others in zip(self.within, self.itself, self.between, reversed(self.between)):
            count, left = len(sums), len(sums) - 1
            # Without an image, the pairs that it is in are gone from either sum, twice from the symmetric one.
            pairs = sums.sum() - 2.0 * sums
            own = pairs / (left * (left - 1)) if unbiased else (pairs + itself.sum() - itself) / left**2
            without = own - 2.0 * (between.sum() - between) / (left * len(others))
            variance += left / count * np.square(without - without.mean()).sum()
        return float(np.sqrt(variance))


@lru_cache(maxsize=2)  # the distance and its error ask for the same
def _sums(first: FeatureRows, second: FeatureRows, kernel: Kernel) -> KernelSums:
    return KernelSums.of(first, second, kernel)


def _sums_within(rows: FeatureRows, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    sums, itself = np.zeros(len(rows)), np.zeros(len(rows))
    for own, block in rows.numbered_blocks():
        for columns, other in rows.numbered_blocks():
            values = kernel(block, other)
            if own == columns:
                itself[own] = np.diag(values)
                np.fill_diagonal(values, 0.0)
            sums[own] += values.sum(axis=1)
    return sums, itself


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
