"""The columns of the results table: what is measured on a set of images, against which real ones, with which error.

A measure never fails for lack of weights or images: it then says why there is no number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.metrics.alignment import CLIPScorer, clip_scores, shuffle_prompts
from nodule_plugin.metrics.distribution import (
    MIN_IMAGES,
    frechet_distance,
    half_sample_error,
    kernel_distance,
    squared_mmd,
)
from nodule_plugin.metrics.features import FeatureExtractor

LOWER, HIGHER, NEAR_REAL = "lower", "higher", "near real"
PUBLISHED, STAND_IN, BEYOND, FINDINGS = "published", "stand-in", "beyond", "findings"
NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Value:
    """One number of the table, or why there is none.

    Attributes:
        value: None where it was not computed.
        standard_error: None where it is not known.
        count: what the number rests on: images, or pairs of images.
        reason: why there is no number.
        details: further numbers, by name.
    """

    value: float | None
    standard_error: float | None = None
    count: int = 0
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json holds it; with the normal 95 % interval where the error is known."""
        interval = None
        if self.value is not None and self.standard_error is not None:
            half = NORMAL_95 * self.standard_error
            interval = [self.value - half, self.value + half]
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "ci95": interval,
            "count": self.count,
            "reason": self.reason,
            **self.details,
        }


def missing(reason: str) -> Value:
    """A value that says why it is none."""
    return Value(None, reason=reason)


class Encoder(Protocol):
    """What turns the images of a batch into features; ``id`` tells which encoders are one and the same."""

    @property
    def id(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...


class Measure(ABC):
    """One column.

    Attributes:
        key: stable name for machines.
        name: heading.
        better: "lower", "higher" or "near real".
        between_sets: whether it compares two sets as wholes.
        extractor: name of the network behind it.
        standard: True if it is the metric the literature knows by this name; False for a stand-in.
    """

    better = LOWER
    between_sets = False

    def __init__(self, key: str, name: str, extractor: str, standard: bool) -> None:
        self.key, self.name, self.extractor, self.standard = key, name, extractor, standard

    @property
    def group(self) -> str:
        """The table that the column stands in."""
        return PUBLISHED if self.standard else STAND_IN

    @property
    @abstractmethod
    def unavailable(self) -> str | None:
        """Why no number can be computed at all, or None."""

    @property
    def encoder(self) -> Encoder | None:
        """What the measure needs from every image, or None."""
        return None

    def measure(self, images: ImageSet, real: ImageSet) -> Value:
        """The number of ``images``, against ``real`` ones where it is a comparison."""
        return missing(self.unavailable) if self.unavailable else self._measure(images, real)

    @abstractmethod
    def _measure(self, images: ImageSet, real: ImageSet) -> Value: ...

    def describe(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return {
            "key": self.key,
            "name": self.name,
            "better": self.better,
            "extractor": self.extractor,
            "group": self.group,
            "standard": self.standard,
            "unavailable": self.unavailable,
        }


class DistanceMeasure(Measure):
    """A distance between two sets in a feature space.

    Args:
        key, name, standard: see :class:`Measure`.
        extractor: of the features.
        repeats: halves drawn for the standard error.
        seed: of that draw.
    """

    between_sets = True

    def __init__(
        self, key: str, name: str, extractor: FeatureExtractor, standard: bool, repeats: int = 50, seed: int = 0
    ) -> None:
        super().__init__(key, name, extractor.name, standard)
        self.features, self.repeats, self.seed = extractor, repeats, seed

    @property
    def unavailable(self) -> str | None:
        return self.features.unavailable

    @property
    def encoder(self) -> Encoder:
        return self.features

    def _measure(self, images: ImageSet, real: ImageSet) -> Value:
        if images.images is real.images:
            return missing("compared with itself")
        for count, kind in ((len(real), "real"), (len(images), images.key.kind)):
            if count < MIN_IMAGES:
                return missing(f"{count} {kind} image{'' if count == 1 else 's'}, {MIN_IMAGES} needed")
        return self._distance(real.features[self.features.id].numpy(), images.features[self.features.id].numpy())

    @abstractmethod
    def _distance(self, real: np.ndarray, fake: np.ndarray) -> Value: ...


class FrechetMeasure(DistanceMeasure):
    """:func:`frechet_distance`: FID where the features are Inception's."""

    def _distance(self, real: np.ndarray, fake: np.ndarray) -> Value:
        error = half_sample_error(frechet_distance, real, fake, self.repeats, self.seed)
        # Fewer images than dimensions leave directions without spread: the number then depends on how many there were.
        details = {"real_count": len(real), "dimensions": real.shape[1]}
        return Value(frechet_distance(real, fake), _known(error), len(fake), details=details)


class KernelMeasure(DistanceMeasure):
    """:func:`kernel_distance`: KID where the features are Inception's.

    Args:
        subsets, subset_size: see :func:`kernel_distance`.
        key, name, extractor, standard, repeats, seed: see :class:`DistanceMeasure`.
    """

    def __init__(
        self,
        key: str,
        name: str,
        extractor: FeatureExtractor,
        standard: bool,
        repeats: int = 50,
        seed: int = 0,
        subsets: int = 100,
        subset_size: int = 1000,
    ) -> None:
        super().__init__(key, name, extractor, standard, repeats, seed)
        self.subsets, self.subset_size = subsets, subset_size

    def _distance(self, real: np.ndarray, fake: np.ndarray) -> Value:
        distance = kernel_distance(real, fake, self.subsets, self.subset_size, self.seed)
        error = half_sample_error(squared_mmd, real, fake, self.repeats, self.seed)
        details = {"real_count": len(real), "subset_std": distance.std}
        return Value(distance.mean, _known(error), len(fake), details=details)


class AlignmentMeasure(Measure):
    """Mean score of images with their prompts, beside the score with prompts dealt anew.

    Args:
        key, name, standard: see :class:`Measure`.
        scorer: of images and prompts.
        extractor: name of the scorer's model.
        seed: of the dealing.
    """

    better = HIGHER

    def __init__(
        self, key: str, name: str, scorer: CLIPScorer, standard: bool, extractor: str | None = None, seed: int = 0
    ) -> None:
        super().__init__(key, name, extractor or scorer.clip.name, standard)
        self.scorer, self.seed = scorer, seed

    @property
    def unavailable(self) -> str | None:
        return self.scorer.unavailable

    @property
    def encoder(self) -> Encoder:
        return self.scorer.clip

    def _measure(self, images: ImageSet, real: ImageSet) -> Value:
        prompts = images.prompts()
        if prompts is None:
            return missing("images without prompts")
        features = images.features[self.scorer.clip.id]
        scores = clip_scores(features, self.scorer.encode_prompts(prompts)).numpy().astype(np.float64)
        details = self._shuffled(features, prompts, scores)
        return Value(float(scores.mean()), mean_error(scores), len(scores), details=details)

    def _shuffled(self, features: Tensor, prompts: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
        most = max(prompts.count(prompt) for prompt in set(prompts))
        if 2 * most > len(prompts):
            return {"shuffled": None, "shuffled_reason": f"{most} of {len(prompts)} images share one prompt"}
        others = self.scorer.encode_prompts(shuffle_prompts(prompts, self.seed))
        shuffled = clip_scores(features, others).numpy().astype(np.float64)
        difference = scores - shuffled
        return {
            "shuffled": float(shuffled.mean()),
            "above_shuffled": float(difference.mean()),
            "above_shuffled_error": mean_error(difference),
        }


def mean_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error
