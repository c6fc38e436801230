"""The distances between two sets of images as torchmetrics: fed batch by batch, on one process or many.

What the number may be called depends on the extractor: only the features of the Inception network that the literature
uses make a Fréchet distance an FID and a kernel distance a KID.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.frechet import distance_of_gaussians, frechet_distance, gaussian_of_moments
from nodule_plugin.metrics.kernel import KernelDistance, kernel_distance, squared_mmd
from nodule_plugin.metrics.two_samples import MIN_IMAGES, Features, checked_pair, half_sample_error

__all__ = [
    "MIN_IMAGES",
    "FeatureDistanceMetric",
    "Features",
    "FrechetDistanceMetric",
    "KernelDistance",
    "KernelDistanceMetric",
    "checked_pair",
    "frechet_distance",
    "half_sample_error",
    "kernel_distance",
    "squared_mmd",
]


class FeatureDistanceMetric(Metric):
    """A distance between real and generated images.

    Args:
        extractor: (B, 3, H, W) images in [-1, 1] -> (B, D) features, see :mod:`nodule_plugin.metrics.features`.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, extractor: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extractor = extractor

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Take a batch of (B, 3, H, W) images in [-1, 1]; ``real`` says to which of the two sets it belongs."""
        self._take(self.extractor(images), "real" if real else "fake")

    @abstractmethod
    def _take(self, features: Tensor, side: str) -> None: ...

    def _missing(self, side: str) -> InputError:
        name = "real" if side == "real" else "generated"
        return InputError(f"{type(self).__name__}: no {name} images were given; at least 2 are needed")


class FrechetDistanceMetric(FeatureDistanceMetric):
    """:func:`frechet_distance` as a metric with ``update``, ``compute`` and ``reset``.

    Keeps sums of the features and of their products in double precision: memory does not grow with the images.
    Processes add theirs up; each must have had a batch.
    """

    def __init__(self, extractor: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        # Their size is known with the first batch only: a single 0 adds to it as it is.
        for side in ("real", "fake"):
            self.add_state(f"{side}_count", default=torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", default=torch.zeros(1, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_products", default=torch.zeros(1, 1, dtype=torch.float64), dist_reduce_fx="sum")

    def _take(self, features: Tensor, side: str) -> None:
        rows = features.double()
        for name, term in (("count", torch.tensor(len(rows))), ("sum", rows.sum(0)), ("products", rows.T @ rows)):
            state = f"{side}_{name}"
            setattr(self, state, getattr(self, state) + term.to(getattr(self, state).device))

    def compute(self) -> Tensor:
        """The distance, a scalar tensor.

        Raises:
            InputError: see :func:`frechet_distance`.
        """
        gaussians = []
        for side in ("real", "fake"):
            count, total, products = (getattr(self, f"{side}_{name}") for name in ("count", "sum", "products"))
            if int(count) == 0:
                raise self._missing(side)
            if int(count) < MIN_IMAGES:
                raise InputError(f"{type(self).__name__}: 1 {side} image, {MIN_IMAGES} needed")
            mean = total / count
            covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
            gaussians.append(gaussian_of_moments(int(count), mean.cpu().numpy(), covariance.cpu().numpy()))
        return torch.tensor(distance_of_gaussians(*gaussians))


class KernelDistanceMetric(FeatureDistanceMetric):
    """:func:`kernel_distance` as a metric with ``update``, ``compute`` and ``reset``; keeps the features.

    Processes join theirs, one after the other: sets larger than a subset are then sampled from in another order than by
    one process.

    Args:
        extractor: see :class:`FeatureDistanceMetric`.
        subsets, subset_size, seed: see :func:`kernel_distance`.
    """

    real_features: list[Tensor]
    fake_features: list[Tensor]

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
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("fake_features", default=[], dist_reduce_fx="cat")

    def _take(self, features: Tensor, side: str) -> None:
        (self.real_features if side == "real" else self.fake_features).append(features.float())

    def compute(self) -> KernelDistance:
        """Mean and standard deviation over the subsets.

        Raises:
            InputError: see :func:`kernel_distance`.
        """
        for side, batches in (("real", self.real_features), ("fake", self.fake_features)):
            if isinstance(batches, list) and not batches:
                raise self._missing(side)
        features = dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)
        return kernel_distance(*features, self.subsets, self.subset_size, self.seed)
