"""The columns of the results table: what is measured on a set of images, against which real ones, with which error.

A measure never fails for lack of weights or images: it then says why there is no number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL, ImageSet
from nodule_plugin.metrics.alignment import CLIPScorer, clip_scores, shuffle_prompts
from nodule_plugin.metrics.feature_cache import Encoder
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.frechet import (
    enough_to_extrapolate,
    extrapolate_frechet_distance,
    frechet_distance,
    frechet_error,
)
from nodule_plugin.metrics.kernel import cmmd, cmmd_error, kernel_distance, kernel_error
from nodule_plugin.metrics.radiomics import RadiomicFeatures
from nodule_plugin.metrics.two_samples import MIN_IMAGES, checked_pair

LOWER, HIGHER, NEAR_REAL = "lower", "higher", "near real"
PUBLISHED, BACKBONES, STAND_IN = "published", "backbones", "stand-in"
BEYOND, FINDINGS = "beyond", "findings"
MEASURED = (REAL, GENERATED, CONTROL)
"""Kinds of sets that are rows of the table."""
NORMAL_95 = 1.959963984540054
NOT_HELD_OUT = "{} of {} real images are of training patients"
"""Why what only held-out images can tell is not told."""


@dataclass(frozen=True)
class Value:
    """One number of the table, or why there is none.

    Attributes:
        value: None where it was not computed.
        standard_error: None where it is not known.
        count: what the number rests on: images, or pairs of images.
        reason: why there is no number.
        details: further numbers, by name.
        bounds: that the value cannot leave, and its interval with it.
    """

    value: float | None
    standard_error: float | None = None
    count: int = 0
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json holds it; with the normal 95 % interval where the error is known."""
        interval = None
        if self.value is not None and self.standard_error is not None:
            half = NORMAL_95 * self.standard_error
            interval = [max(self.value - half, self.bounds[0]), min(self.value + half, self.bounds[1])]
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


class Measure(ABC):
    """One column.

    Attributes:
        key: stable name for machines.
        name: heading.
        better: "lower", "higher" or "near real".
        between_sets: whether it compares two sets as wholes.
        extractor: name of the network behind it.
        standard: True if it is the metric the literature knows by this name; False for a stand-in.
        interval: how its standard error, and with that the interval, is found.
        bounds: of its values.
    """

    better = LOWER
    between_sets = False
    interval = "standard deviation over images, divided by the root of their number"
    bounds = (-math.inf, math.inf)

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
        """What the measure needs from every image that is measured, or None."""
        return None

    def encoders(self, kind: str) -> list[Encoder]:
        """What the measure needs from images of one kind, see :class:`nodule_plugin.data.image_set.SetKey`."""
        return [] if self.encoder is None or kind not in MEASURED else [self.encoder]

    def measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None = None) -> Value:
        """The number of ``images``.

        Args:
            images: to measure.
            real: that they are compared with where it is a comparison.
            training: that the model has seen, for the measures that ask what it learnt.
        """
        if self.unavailable:
            return missing(self.unavailable)
        return replace(self._measure(images, real, training), bounds=self.bounds)

    @abstractmethod
    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value: ...

    def describe(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return {
            "key": self.key,
            "name": self.name,
            "better": self.better,
            "extractor": self.extractor,
            "group": self.group,
            "standard": self.standard,
            "interval": self.interval,
            "unavailable": self.unavailable,
        }


class DistanceMeasure(Measure):
    """A distance between two sets in a feature space.

    Args:
        key, name, standard: see :class:`Measure`.
        extractor: of the features.
        repeats: halves drawn for the standard error.
        seed: of that draw.
        group: of the table; None for published or stand-in.
    """

    between_sets = True
    interval = "delete-half jackknife"

    def __init__(
        self,
        key: str,
        name: str,
        extractor: FeatureExtractor,
        standard: bool,
        repeats: int = 50,
        seed: int = 0,
        group: str | None = None,
    ) -> None:
        super().__init__(key, name, extractor.name, standard)
        self.features, self.repeats, self.seed, self._group = extractor, repeats, seed, group

    @property
    def group(self) -> str:
        return self._group or super().group

    @property
    def unavailable(self) -> str | None:
        return self.features.unavailable

    @property
    def encoder(self) -> Encoder:
        return self.features

    def objection(self, images: ImageSet, real: ImageSet) -> str | None:
        """Why there is no distance between these two, or None."""
        pair = self._pair(images, real)
        return pair if isinstance(pair, str) else None

    def between(self, images: ImageSet, real: ImageSet) -> float | None:
        """The distance alone, without its error; None where it cannot be computed."""
        pair = self._pair(images, real)
        return None if isinstance(pair, str) else self._distance(*pair)[0]

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        pair = self._pair(images, real)
        if isinstance(pair, str):
            return missing(pair)
        value, details = self._distance(*pair)
        return Value(value, _known(self._error(*pair)), len(images), details={"real_count": len(real), **details})

    def _pair(self, images: ImageSet, real: ImageSet) -> tuple[FeatureRows, FeatureRows] | str:
        """Both sets' features, or why there is no distance."""
        if images.images is real.images:
            return "compared with itself"
        for count, kind in ((len(real), "real"), (len(images), images.key.kind)):
            if count < MIN_IMAGES:
                return f"{count} {kind} image{'' if count == 1 else 's'}, {MIN_IMAGES} needed"
        pair = real.features_of(self.features.id), images.features_of(self.features.id)
        return self._objection(*pair) or pair

    def _objection(self, real: FeatureRows, fake: FeatureRows) -> str | None:
        """Why these two cannot be compared, or None."""
        return None

    @abstractmethod
    def _distance(self, real: FeatureRows, fake: FeatureRows) -> tuple[float, dict[str, Any]]:
        """The distance, and what else is known of it."""

    @abstractmethod
    def _error(self, real: FeatureRows, fake: FeatureRows) -> float:
        """Its standard error; NaN where it is not known."""


class FrechetMeasure(DistanceMeasure):
    """:func:`frechet_distance`: FID where the features are Inception's."""

    bounds = (0.0, math.inf)
    interval = "delete-half jackknife; delta method where both sets hold more than twice as many images as dimensions"

    def _distance(self, real: FeatureRows, fake: FeatureRows) -> tuple[float, dict[str, Any]]:
        # Fewer images than dimensions leave directions without spread: the number then depends on how many there were.
        return frechet_distance(real, fake), {"dimensions": real.shape[1]}

    def _error(self, real: FeatureRows, fake: FeatureRows) -> float:
        return frechet_error(real, fake, self.repeats, self.seed)


class ExtrapolatedFrechetMeasure(DistanceMeasure):
    """:func:`extrapolate_frechet_distance`: FID-infinity where the features are Inception's."""

    interval = "delta method, and the scatter about the line that is extrapolated"

    def _objection(self, real: FeatureRows, fake: FeatureRows) -> str | None:
        count, dimensions = min(len(real), len(fake)), real.shape[1]
        if enough_to_extrapolate(len(real), len(fake), dimensions):
            return None
        return f"{count} images, {2 * dimensions + 2} needed (twice the {dimensions} features)"

    def _distance(self, real: FeatureRows, fake: FeatureRows) -> tuple[float, dict[str, Any]]:
        found = extrapolate_frechet_distance(real, fake, repeats=self.repeats, seed=self.seed)
        return found.value, {"error": found.error, "sizes": found.sizes, "distances": found.distances}

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        pair = self._pair(images, real)
        if isinstance(pair, str):
            return missing(pair)
        value, details = self._distance(*pair)
        return Value(value, details.pop("error"), len(images), details={"real_count": len(real), **details})

    def _error(self, real: FeatureRows, fake: FeatureRows) -> float:
        return extrapolate_frechet_distance(real, fake, repeats=self.repeats, seed=self.seed).error


class _RadiomicsDistance(DistanceMeasure):
    """Radiomic features in units of their spread among the real images: none counts more for its unit alone.

    Args:
        extractor: of the features.
        settings: repeats, seed and what else the distance takes.
        key, name: see :class:`DistanceMeasure`.
    """

    def __init__(self, key: str, name: str, extractor: RadiomicFeatures, **settings: Any) -> None:
        super().__init__(key, name, extractor, standard=False, group=BEYOND, **settings)

    def _pair(self, images: ImageSet, real: ImageSet) -> tuple[FeatureRows, FeatureRows] | str:
        pair = super()._pair(images, real)
        if isinstance(pair, str):
            return pair
        reference, other = (rows.read() for rows in checked_pair(*pair))
        mean, spread = reference.mean(axis=0), reference.std(axis=0, ddof=1)
        spread = np.where(spread > 0, spread, 1.0)
        return FeatureRows((reference - mean) / spread), FeatureRows((other - mean) / spread)


class RadiomicsMeasure(_RadiomicsDistance, FrechetMeasure):
    """Fréchet radiomics distance: :func:`frechet_distance` of radiomic features, each in units of its real spread.

    Source: Konz et al., "Fréchet Radiomic Distance (FRD)", arXiv:2412.01496; the features are
    :data:`nodule_plugin.metrics.radiomics.FEATURES`, fewer than theirs. Arguments: see :class:`_RadiomicsDistance`.
    """


class KernelMeasure(DistanceMeasure):
    """:func:`kernel_distance`: KID where the features are Inception's.

    Args:
        subsets, subset_size: see :func:`kernel_distance`.
        key, name, extractor, standard, repeats, seed, group: see :class:`DistanceMeasure`.
    """

    def __init__(
        self,
        key: str,
        name: str,
        extractor: FeatureExtractor,
        standard: bool,
        repeats: int = 50,
        seed: int = 0,
        group: str | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
    ) -> None:
        super().__init__(key, name, extractor, standard, repeats, seed, group)
        self.subsets, self.subset_size = subsets, subset_size

    def _distance(self, real: FeatureRows, fake: FeatureRows) -> tuple[float, dict[str, Any]]:
        distance = kernel_distance(real, fake, self.subsets, self.subset_size, self.seed)
        return distance.mean, {"subset_std": distance.std}

    def _error(self, real: FeatureRows, fake: FeatureRows) -> float:
        return kernel_error(real, fake, self.repeats, self.seed)


class KernelRadiomicsMeasure(_RadiomicsDistance, KernelMeasure):
    """Kernel radiomics distance: :func:`kernel_distance` of the features of :class:`RadiomicsMeasure`.

    Arguments: see :class:`_RadiomicsDistance` and :class:`KernelMeasure`.
    """


class CMMDMeasure(DistanceMeasure):
    """:func:`cmmd` of a CLIP model's image embeddings."""

    bounds = (0.0, math.inf)

    def _distance(self, real: FeatureRows, fake: FeatureRows) -> tuple[float, dict[str, Any]]:
        return cmmd(real, fake), {}

    def _error(self, real: FeatureRows, fake: FeatureRows) -> float:
        return cmmd_error(real, fake, self.repeats, self.seed)


def backbone_measures(
    extractors: Sequence[FeatureExtractor],
    repeats: int = 50,
    seed: int = 0,
    subsets: int = 100,
    subset_size: int = 1000,
) -> list[Measure]:
    """Fréchet and kernel distance on each of several networks, named after it.

    Args:
        extractors: see :func:`nodule_plugin.metrics.features.backbone_extractors`.
        repeats, seed: see :class:`DistanceMeasure`.
        subsets, subset_size: see :func:`kernel_distance`.
    """
    columns: list[Measure] = []
    for number, extractor in enumerate(extractors, start=1):
        shared: dict[str, Any] = {
            "extractor": extractor,
            "standard": False,
            "repeats": repeats,
            "seed": seed,
            "group": BACKBONES,
        }
        columns.append(FrechetMeasure(f"fd_backbone{number}", f"FD ({extractor.name})", **shared))
        columns.append(
            KernelMeasure(
                f"kd_backbone{number}", f"KD ({extractor.name})", **shared, subsets=subsets, subset_size=subset_size
            )
        )
    return columns


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
        words = f"after {scorer.prefix!r}" if scorer.prefix else "as they are"
        super().__init__(key, name, f"{extractor or scorer.clip.name}, prompts {words}", standard)
        self.scorer, self.seed = scorer, seed

    @property
    def unavailable(self) -> str | None:
        return self.scorer.unavailable

    @property
    def encoder(self) -> Encoder:
        return self.scorer.clip

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        prompts = images.prompts()
        if prompts is None:
            return missing("images without prompts")
        features = images.features_of(self.scorer.clip.id)
        scores = self._scores(features, prompts)
        details = self._shuffled(features, prompts, scores)
        return Value(float(scores.mean()), mean_error(scores), len(scores), details=details)

    def _scores(self, features: FeatureRows, prompts: Sequence[str]) -> np.ndarray:
        """(N,) scores; texts and images a block at a time."""
        scores, start = [], 0
        for block in features.blocks():
            texts = self.scorer.encode_prompts(prompts[start : start + len(block)]).double()
            scores.append(clip_scores(torch.from_numpy(block), texts).numpy())
            start += len(block)
        return np.concatenate(scores)

    def _shuffled(self, features: FeatureRows, prompts: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
        most = max(Counter(prompts).values())
        if 2 * most > len(prompts):
            return {"shuffled": None, "shuffled_reason": f"{most} of {len(prompts)} images share one prompt"}
        shuffled = self._scores(features, shuffle_prompts(prompts, self.seed))
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
