"""Kernel distances between two sets of features: KID's, and CMMD's on CLIP embeddings, with their standard errors.

Sources: Binkowski et al., "Demystifying MMD GANs", ICLR 2018 (KID); Jayasumana et al., "Rethinking FID: Towards a
Better Evaluation Metric for Image Generation", CVPR 2024, arXiv:2401.09603 (CMMD).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.two_samples import MIN_IMAGES, Features, checked_pair

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, D) and (M, D) features -> (N, M) values of the kernel."""
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
GROUPS = 64
"""Images are summed up in so many groups, halves of which the jackknife takes: the kernel is computed once."""


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
        _unbiased(
            first[draw.choice(len(first), size, replace=False)], second[draw.choice(len(second), size, replace=False)]
        )
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)))


def _unbiased(first: np.ndarray, second: np.ndarray) -> float:
    within = [polynomial_kernel(rows, rows) for rows in (first, second)]
    means = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in within]
    return float(sum(means) - 2.0 * polynomial_kernel(first, second).mean())


def squared_mmd(real: Features, fake: Features) -> float:
    """The unbiased squared maximum mean discrepancy of all images, with KID's kernel; see :func:`kernel_distance`."""
    return KernelSums.of(*checked_pair(real, fake), polynomial_kernel, 0, groups=1).distance(unbiased=True)


def cmmd(real: Features, fake: Features) -> float:
    """CMMD: 1000 times the squared maximum mean discrepancy of CLIP embeddings with :func:`gaussian_kernel`.

    As in the authors' code, the estimate is the one that takes each image with itself too: it is 0 or more, 0 for
    equal sets, and biased upwards for small ones.

    Args:
        real, fake: (N, D) and (M, D) CLIP embeddings, of any length; at least two of each.

    Raises:
        InputError: for fewer than two images, differing D, or values that are not finite.
    """
    sums = KernelSums.of(*checked_pair(real, fake), gaussian_kernel, 0, groups=1)
    return CMMD_SCALE * sums.distance(unbiased=False)


def kernel_error(real: Features, fake: Features, repeats: int = 50, seed: int = 0) -> float:
    """Standard error of :func:`kernel_distance`, by the jackknife of :class:`KernelSums`; NaN for too few images."""
    sums = KernelSums.of(*checked_pair(real, fake), polynomial_kernel, seed)
    return sums.error(unbiased=True, repeats=repeats, seed=seed)


def cmmd_error(real: Features, fake: Features, repeats: int = 50, seed: int = 0) -> float:
    """Standard error of :func:`cmmd`, by the jackknife of :class:`KernelSums`; NaN for too few images."""
    sums = KernelSums.of(*checked_pair(real, fake), gaussian_kernel, seed)
    return CMMD_SCALE * sums.error(unbiased=False, repeats=repeats, seed=seed)


class KernelSums(NamedTuple):
    """The kernel of all pairs of images, summed up by random groups of images.

    Attributes:
        within: for either set (G, G) sums over pairs of images, an image with itself left out.
        itself: for either set (G,) sums of the kernel of an image with itself.
        between: (G, H) sums over pairs of a real and a generated image.
        counts: for either set (G,) images in the groups.
    """

    within: tuple[np.ndarray, np.ndarray]
    itself: tuple[np.ndarray, np.ndarray]
    between: np.ndarray
    counts: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, first: FeatureRows, second: FeatureRows, kernel: Kernel, seed: int, groups: int = GROUPS) -> KernelSums:
        """Sum up; two blocks of features are in memory at a time.

        Args:
            first, second: the two sets.
            kernel: of two blocks of features.
            seed: of the groups.
            groups: of either set at most; as many as there are images where these are fewer.
        """
        members = _membership(len(first), groups, seed), _membership(len(second), groups, seed + 1)
        own = [_sums_within(rows, member, kernel) for rows, member in zip((first, second), members)]
        between = np.zeros((members[0].shape[1], members[1].shape[1]))
        for rows, block in first.numbered_blocks():
            for columns, other in second.numbered_blocks():
                between += members[0][rows].T @ kernel(block, other) @ members[1][columns]
        counts = members[0].sum(axis=0), members[1].sum(axis=0)
        return cls((own[0][0], own[1][0]), (own[0][1], own[1][1]), between, counts)

    def distance(self, unbiased: bool, chosen: tuple[np.ndarray, np.ndarray] | None = None) -> float:
        """The squared maximum mean discrepancy of all images, or of those in the ``chosen`` groups of either set."""
        if chosen is None:
            chosen = (np.arange(len(self.counts[0])), np.arange(len(self.counts[1])))
        within = 0.0
        for sums, itself, counts, groups in zip(self.within, self.itself, self.counts, chosen):
            count = int(counts[groups].sum())
            pairs = float(sums[np.ix_(groups, groups)].sum())
            if unbiased:
                within += pairs / (count * (count - 1))
            else:
                within += (pairs + float(itself[groups].sum())) / count**2
        images = self.counts[0][chosen[0]].sum() * self.counts[1][chosen[1]].sum()
        return float(within - 2.0 * self.between[np.ix_(*chosen)].sum() / images)

    def error(self, unbiased: bool, repeats: int, seed: int) -> float:
        """The delete-half jackknife over groups, see :func:`nodule_plugin.metrics.two_samples.half_sample_error`."""
        if min(len(counts) for counts in self.counts) < 2 * MIN_IMAGES:
            return float("nan")
        draw = np.random.default_rng(seed)
        values = [
            self.distance(unbiased, (_half(len(self.counts[0]), draw), _half(len(self.counts[1]), draw)))
            for _ in range(repeats)
        ]
        return float(np.std(values, ddof=1))


def _half(count: int, draw: np.random.Generator) -> np.ndarray:
    return np.asarray(draw.choice(count, count // 2, replace=False))


def _membership(count: int, groups: int, seed: int) -> np.ndarray:
    """(count, G) with a 1 for each image's group; groups are random and equally large, give or take one."""
    number = min(groups, count)
    member = np.zeros((count, number))
    member[np.random.default_rng(seed).permutation(count), np.arange(count) % number] = 1.0
    return member


def _sums_within(rows: FeatureRows, member: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    sums, itself = np.zeros((member.shape[1],) * 2), np.zeros(member.shape[1])
    for places, block in rows.numbered_blocks():
        for others, other in rows.numbered_blocks():
            values = kernel(block, other)
            if places == others:
                itself += np.diag(values) @ member[places]
                np.fill_diagonal(values, 0.0)
            sums += member[places].T @ values @ member[others]
    return sums, itself


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
