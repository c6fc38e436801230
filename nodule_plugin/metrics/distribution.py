"""Distances between two sets of images in a feature space: Fréchet distance (FID) and kernel distance (KID).

The functions take features and know no network. What the number may be called depends on the features: only those of
the Inception network that the literature uses make a Fréchet distance an FID and a kernel distance a KID.

Sources: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS
2017 (FID); Binkowski et al., "Demystifying MMD GANs", ICLR 2018 (KID); Shao and Wu, "A general theory for jackknife
variance estimation", Ann Stat 1989;17:1176-1197 (standard errors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from nodule_plugin.errors import InputError

Features = Tensor | np.ndarray
MIN_IMAGES = 2
"""Fewer images have no covariance and no unbiased kernel mean."""


class KernelDistance(NamedTuple):
    """Mean and standard deviation of the kernel distance over random subsets."""

    mean: float
    std: float


def frechet_distance(real: Features, fake: Features) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with the sample covariances S. The last trace is the sum of the
    singular values of ``A1 A2^T`` where ``S = A^T A``, which needs no matrix root, stays real for fewer images than
    dimensions, and is as cheap as the fewer of the two allow.

    Args:
        real: (N, D) features, N >= 2.
        fake: (M, D) features, M >= 2.

    Returns:
        The distance, 0 or more, in squared units of the features.

    Raises:
        InputError: for fewer than two images, differing D, or values that are not finite.
    """
    first, second = checked_pair(real, fake)
    mean_first, mean_second = first.mean(axis=0), second.mean(axis=0)
    root_first, root_second = _covariance_root(first - mean_first), _covariance_root(second - mean_second)
    cross = np.linalg.svd(root_first @ root_second.T, compute_uv=False).sum()
    spread = np.square(root_first).sum() + np.square(root_second).sum()
    return float(max(np.square(mean_first - mean_second).sum() + spread - 2.0 * cross, 0.0))


def kernel_distance(
    real: Features, fake: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Kernel distance: the unbiased squared maximum mean discrepancy with kernel ``(x.y / D + 1)^3``, over subsets.

    The subsets are drawn as torch-fidelity draws them (NumPy's RandomState, real first), so that one seed gives the
    same number in both. Where a set has fewer images than ``subset_size``, the smaller set's size is used instead.

    Args:
        real: (N, D) features, N >= 2.
        fake: (M, D) features, M >= 2.
        subsets: how many subsets are drawn.
        subset_size: images in each of them, of either kind.
        seed: of the draw.

    Returns:
        Mean and standard deviation over the subsets. The mean may be slightly negative. The standard deviation is one
        of subsets and is 0 where a subset holds everything; for the error of the mean see :func:`half_sample_error`.

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
        return KernelDistance(_squared_mmd(first, second), 0.0)
    draw = np.random.RandomState(seed)  # torch-fidelity's generator, for the same subsets
    distances = [
        _squared_mmd(first[draw.choice(len(first), size, replace=False)], second[draw.choice(len(second), size, False)])
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)))


def squared_mmd(real: Features, fake: Features) -> float:
    """The unbiased squared maximum mean discrepancy of all images, with KID's kernel; see :func:`kernel_distance`."""
    return _squared_mmd(*checked_pair(real, fake))


def half_sample_error(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    real: Features,
    fake: Features,
    repeats: int = 50,
    seed: int = 0,
) -> float:
    """Standard error of a two-sample statistic by the delete-half jackknife.

    Random halves are drawn without replacement from both sets; for halves the jackknife's scale factor is 1, so that
    the standard deviation over them is the error of the whole. The bootstrap is no alternative here: the copies it
    draws make two images equal, which biases both distances upwards.

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
    draw = np.random.default_rng(seed)
    values = [statistic(_half(first, draw), _half(second, draw)) for _ in range(repeats)]
    return float(np.std(values, ddof=1))


class FeatureDistanceMetric(Metric):
    """A distance between real and generated images, fed batch by batch; over several processes the features are joined.

    Args:
        extractor: (B, 3, H, W) images in [-1, 1] -> (B, D) features, see :mod:`nodule_plugin.metrics.features`.
    """

    full_state_update = False
    higher_is_better = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, extractor: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extractor = extractor
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("fake_features", default=[], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Take a batch of (B, 3, H, W) images in [-1, 1]; ``real`` says to which of the two sets it belongs."""
        features = self.extractor(images).float()
        (self.real_features if real else self.fake_features).append(features)

    def _features(self) -> tuple[Tensor, Tensor]:
        for name, batches in (("real", self.real_features), ("generated", self.fake_features)):
            if isinstance(batches, list) and not batches:
                raise InputError(f"{type(self).__name__}: no {name} images were given; at least 2 are needed")
        return dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)


class FrechetDistanceMetric(FeatureDistanceMetric):
    """:func:`frechet_distance` as a metric with ``update``, ``compute`` and ``reset``."""

    def compute(self) -> Tensor:
        """The distance, a scalar tensor.

        Raises:
            InputError: see :func:`frechet_distance`.
        """
        return torch.tensor(frechet_distance(*self._features()))


class KernelDistanceMetric(FeatureDistanceMetric):
    """:func:`kernel_distance` as a metric with ``update``, ``compute`` and ``reset``.

    Args:
        extractor: see :class:`FeatureDistanceMetric`.
        subsets, subset_size, seed: see :func:`kernel_distance`.
    """

    def __init__(
        self,
        extractor: Callable[[Tensor], Tensor],
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(extractor, **kwargs)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def compute(self) -> KernelDistance:
        """Mean and standard deviation over the subsets.

        Raises:
            InputError: see :func:`kernel_distance`.
        """
        return kernel_distance(*self._features(), self.subsets, self.subset_size, self.seed)

    def standard_error(self) -> float:
        """Of the distance, over the images of all processes; see :func:`half_sample_error`."""
        with self.sync_context():
            return half_sample_error(squared_mmd, *self._features())


def _half(features: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return features[draw.choice(len(features), len(features) // 2, replace=False)]


def _covariance_root(centred: np.ndarray) -> np.ndarray:
    """A with ``A^T A`` the sample covariance of the (N, D) ``centred`` features; at most min(N, D) rows."""
    root = centred / np.sqrt(len(centred) - 1)
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def _squared_mmd(first: np.ndarray, second: np.ndarray) -> float:
    within = _mean_off_diagonal(_kernel(first, first)) + _mean_off_diagonal(_kernel(second, second))
    return float(within - 2.0 * _kernel(first, second).mean())


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # A square and a product: NumPy's power of 3 is twenty times slower.
    base = first @ second.T / first.shape[1] + 1.0
    return base * base * base


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def checked_pair(real: Features, fake: Features) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as (N, D) and (M, D) float64 arrays.

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


def _checked(features: Features, name: str) -> np.ndarray:
    if isinstance(features, Tensor):
        features = features.detach().cpu().numpy()
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2:
        raise InputError(
            f"features of {name} images: a table of (images, dimensions) is needed, not shape {array.shape}"
        )
    if len(array) < MIN_IMAGES:
        raise InputError(f"features of {name} images: {len(array)} image, {MIN_IMAGES} needed")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError(f"features of {name} images: image {bad} has values that are not finite; check that image")
    return array
