"""Columns that tell what one distance hides: fidelity apart from coverage, and copies of training images."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import GENERATED, REAL, ImageSet
from nodule_plugin.metrics.coverage import Coverage, manifold_coverage
from nodule_plugin.metrics.feature_cache import embedder
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.measures import BEYOND, HIGHER, NOT_HELD_OUT, DistanceMeasure, Measure, Value, missing
from nodule_plugin.metrics.memorization import FALSE_ALARMS, PLANTED, CopyDetector, Inspection, Rate
from nodule_plugin.metrics.two_samples import MIN_IMAGES, random_halves


class CoverageMeasure(DistanceMeasure):
    """One of the four shares of :func:`manifold_coverage`.

    Args:
        share: "precision", "recall", "density" or "coverage".
        neighbours: see :func:`manifold_coverage`.
        key, name, extractor, standard, repeats, seed: see :class:`DistanceMeasure`.
    """

    better = HIGHER
    interval = "delete-half jackknife; exact binomial where all images or none count"

    def __init__(
        self,
        key: str,
        name: str,
        extractor: FeatureExtractor,
        share: str,
        standard: bool = False,
        neighbours: int = 5,
        repeats: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(key, name, extractor, standard, repeats, seed)
        self.share, self.neighbours = share, neighbours
        self.bounds = (0.0, math.inf) if share == "density" else (0.0, 1.0)

    @property
    def group(self) -> str:
        return BEYOND

    def _objection(self, real: FeatureRows, fake: FeatureRows) -> str | None:
        count, needed = min(len(real), len(fake)), self.neighbours + 1
        return f"{count} images, {needed} needed" if count < needed else None

    def _distance(self, real: FeatureRows, fake: FeatureRows) -> tuple[float, dict[str, Any]]:
        share = self._share(real, fake)
        details: dict[str, Any] = {"neighbours": self.neighbours}
        if share in self.bounds and self.share != "density":
            # All halves agree where all images do: the jackknife then sees no error.
            count = len(fake) if self.share == "precision" else len(real)
            details["ci95"] = list(Rate(round(share * count), count).interval)
        return share, details

    def _error(self, real: FeatureRows, fake: FeatureRows) -> float:
        if min(len(real), len(fake)) < 2 * (self.neighbours + 1):
            return float("nan")
        halves = _halved(real, fake, self.neighbours, self.repeats, self.seed)
        return float(np.std([getattr(found, self.share) for found in halves], ddof=1))

    def _share(self, real: FeatureRows, fake: FeatureRows) -> float:
        return float(getattr(_whole(real, fake, self.neighbours), self.share))


# The four shares are columns of their own but come from one computation.
@lru_cache(maxsize=64)
def _whole(real: FeatureRows, fake: FeatureRows, neighbours: int) -> Coverage:
    return manifold_coverage(real, fake, neighbours)


@lru_cache(maxsize=64)
def _halved(real: FeatureRows, fake: FeatureRows, neighbours: int, repeats: int, seed: int) -> list[Coverage]:
    """Of random halves of both sets, for the jackknife."""
    return [manifold_coverage(*pair, neighbours) for pair in random_halves(real, fake, repeats, seed)]


class CopyMeasure(Measure):
    """Share of images that are copies of training images, see :mod:`nodule_plugin.metrics.memorization`.

    Args:
        key, name: see :class:`Measure`.
        embedding: whose embeddings are compared beside grey values; None, or unavailable: grey values only.
        cache_dir: of the embeddings of all orientations; None keeps none.
        false_alarms: share of held-out real images that may be called copies.
        planted: copies that count what the detector misses, see :meth:`CopyDetector.calibrate`.
        seed: of these.
    """

    interval = "exact binomial"

    def __init__(
        self,
        key: str,
        name: str,
        embedding: FeatureExtractor | None = None,
        cache_dir: str | Path | None = None,
        false_alarms: float = FALSE_ALARMS,
        planted: int = PLANTED,
        seed: int = 0,
    ) -> None:
        self.embedding = None if embedding is None or embedding.unavailable else embedding
        likenesses = ["correlation of grey values", *([] if self.embedding is None else [self.embedding.name])]
        super().__init__(key, name, " or ".join(likenesses), standard=False)
        self.cache_dir, self.false_alarms, self.planted, self.seed = cache_dir, false_alarms, planted, seed
        self._detectors: dict[tuple[int, int], CopyDetector] = {}
        self._inspections: dict[tuple[int, int], Inspection] = {}

    @property
    def group(self) -> str:
        return BEYOND

    @property
    def unavailable(self) -> str | None:
        return None

    def detector(self, real: ImageSet, training: ImageSet) -> CopyDetector:
        """Calibrated on these sets, once."""
        place = id(real.images), id(training.images)
        if place not in self._detectors:
            embed = None if self.embedding is None else embedder(self.embedding, self.cache_dir)
            self._detectors[place] = CopyDetector.calibrate(
                training.images, real.images, embed, self.false_alarms, self.planted, self.seed
            )
        return self._detectors[place]

    def inspect(self, images: ImageSet, detector: CopyDetector) -> Inspection:
        """Of a set, once."""
        place = id(images.images), id(detector)
        if place not in self._inspections:
            self._inspections[place] = detector.inspect(images.images)
        return self._inspections[place]

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        if training is None:
            return missing("no training images given")
        if images.key.kind not in (REAL, GENERATED):
            return missing("not an image of a model")
        if len(real) < MIN_IMAGES:
            return missing(f"{len(real)} real image, {MIN_IMAGES} needed")
        if seen := real.of_patients(training):
            return missing(NOT_HELD_OUT.format(seen, len(real)))
        detector = self.detector(real, training)
        found = self.inspect(images, detector)
        rate = Rate(int(found.copies.sum()), len(images))
        details: dict[str, Any] = {
            "ci95": list(rate.interval),
            "thresholds": detector.thresholds,
            "false_alarm_rate": detector.false_alarms.share,
            "miss_rate": detector.misses.share,
        }
        for name, near in found.nearest.items():
            most = int(near.likeness.argmax())
            details[f"median_likeness ({name})"] = float(np.median(near.likeness))
            details[f"most_alike ({name})"] = {"image": images.records[most].id, "likeness": float(near.likeness[most])}
        error = float(np.sqrt(rate.share * (1 - rate.share) / rate.count)) or None
        return Value(rate.share, error, rate.count, details=details)
