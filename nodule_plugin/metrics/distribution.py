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
from nodule_plugin.metrics.frechet import condensed, distance_of_gaussians, gaussian_of_rows, with_weight
from nodule_plugin.metrics.kernel import KernelDistance, kernel_distance, kernel_error


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
    """:func:`nodule_plugin.metrics.frechet.frechet_distance` as a metric with ``update``, ``compute`` and ``reset``.

    Memory does not grow with the images: rows beyond twice the number of features are condensed, without loss, and
    processes join what they hold (:func:`nodule_plugin.metrics.frechet.condensed`).
    """

    real_rows: list[Tensor]
    fake_rows: list[Tensor]

    def __init__(self, extractor: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(extractor, **kwargs)
        self.add_state("real_rows", default=[], dist_reduce_fx="cat")
        self.add_state("fake_rows", default=[], dist_reduce_fx="cat")

    def _take(self, features: Tensor, side: str) -> None:
        rows = self.real_rows if side == "real" else self.fake_rows
        rows.append(torch.from_numpy(with_weight(features.double().cpu().numpy())).to(self.device))
        if sum(len(block) for block in rows) > 2 * rows[0].shape[1]:
            rows[:] = [torch.from_numpy(condensed(torch.cat(rows).cpu().numpy())).to(self.device)]

    def compute(self) -> Tensor:
        """The distance, a scalar tensor.

        Raises:
            InputError: see :func:`nodule_plugin.metrics.frechet.frechet_distance`.
        """
        gaussians = []
        for side, rows in (("real", self.real_rows), ("fake", self.fake_rows)):
            if isinstance(rows, list) and not rows:
                raise self._missing(side)
            gaussians.append(gaussian_of_rows(condensed(dim_zero_cat(rows).cpu().numpy())))
        return torch.tensor(distance_of_gaussians(*gaussians))


class KernelDistanceMetric(FeatureDistanceMetric):
    """:func:`nodule_plugin.metrics.kernel.kernel_distance`, fed batch by batch; keeps the features.

    Processes join theirs, one after the other: sets larger than a subset are then sampled from in another order than by
    one process.

    Args:
        extractor: see :class:`FeatureDistanceMetric`.
        subsets, subset_size, seed: see :func:`nodule_plugin.metrics.kernel.kernel_distance`.
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
            InputError: see :func:`nodule_plugin.metrics.kernel.kernel_distance`.
        """
        return kernel_distance(*self._features(), self.subsets, self.subset_size, self.seed)

    def standard_error(self) -> float:
        """Of the distance, over the images of all processes; see :func:`nodule_plugin.metrics.kernel.kernel_error`."""
        with self.sync_context():
            return kernel_error(*self._features())

    def _features(self) -> tuple[Tensor, Tensor]:
        for side, batches in (("real", self.real_features), ("fake", self.fake_features)):
            if isinstance(batches, list) and not batches:
                raise self._missing(side)
        return dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)
