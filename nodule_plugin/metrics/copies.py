"""The column of copies: the fraction of images that a detector takes for training images in disguise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nodule_plugin.data.image_set import GENERATED, REAL, ImageSet
from nodule_plugin.metrics.feature_cache import FeatureCache
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.intervals import Rate
from nodule_plugin.metrics.likeness import Embed
from nodule_plugin.metrics.measures import NOT_HELD_OUT, Measure, Scale, Value, missing
from nodule_plugin.metrics.memorization import FALSE_ALARMS, PLANTED, CopyDetector, Inspection
from nodule_plugin.metrics.two_samples import MIN_IMAGES


def embedder(extractor: FeatureExtractor | None, cache_dir: str | Path | None) -> Embed | None:
    """What gives a copy detector its embeddings; None where there is no extractor, or it is unavailable.

    Args:
        extractor: of the embeddings of images (3, H, W) uint8, of any sizes.
        cache_dir: where they are kept; None encodes them anew each time.
    """
    if extractor is None or extractor.unavailable:
        return None

    def embed(images: Iterable[Tensor]) -> np.ndarray:
        if cache_dir is not None:
            return FeatureCache(cache_dir, extractor).features_of(images, "embeddings").read()
        with tempfile.TemporaryDirectory() as scratch:
            return FeatureCache(scratch, extractor).features_of(images, "embeddings").read()

    return embed


@dataclass(frozen=True, eq=False)
class CopyMeasure(Measure):
    """Fraction of images that are copies of training images, see :mod:`nodule_plugin.metrics.memorization`.

    Args:
        key, name, group: see :class:`Measure`.
        embedding: whose embeddings are compared beside grey values; None, or unavailable: grey values only.
        cache_dir: of the embeddings of all orientations; None keeps none.
        false_alarms: fraction of held-out real images that may be called copies.
        planted: copies that count what the detector misses, see :meth:`CopyDetector.calibrate`.
        seed: of these.
    """

    embedding: FeatureExtractor | None = None
    cache_dir: str | Path | None = None
    false_alarms: float = FALSE_ALARMS
    planted: int = PLANTED
    seed: int = 0
    scale = Scale(interval="exact binomial")
    unavailable = None
    _detectors: dict[tuple[ImageSet, ImageSet], CopyDetector] = field(default_factory=dict, init=False, repr=False)
    _inspections: dict[tuple[ImageSet, CopyDetector], Inspection] = field(default_factory=dict, init=False, repr=False)

    @property
    def network(self) -> str:
        known = [] if self.embedding is None or self.embedding.unavailable else [self.embedding.name]
        return " or ".join(["correlation of grey values", *known])

    def detector(self, real: ImageSet, training: ImageSet) -> CopyDetector:
        """Calibrated on these sets, once."""
        if (real, training) not in self._detectors:
            self._detectors[real, training] = CopyDetector.calibrate(
                training.images,
                real.images,
                embedder(self.embedding, self.cache_dir),
                self.false_alarms,
                self.planted,
                self.seed,
            )
        return self._detectors[real, training]

    def inspect(self, images: ImageSet, detector: CopyDetector) -> Inspection:
        """Of a set, once."""
        if (images, detector) not in self._inspections:
            self._inspections[images, detector] = detector.inspect(images.images)
        return self._inspections[images, detector]

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
        inspection = self.inspect(images, detector)
        rate = Rate(int(inspection.copies.sum()), len(images))
        details: dict[str, Any] = {
            "ci95": rate.to_dict()["ci95"],
            "thresholds": detector.thresholds,
            "false_alarm_rate": detector.false_alarms.fraction,
            "miss_rate": detector.misses.fraction,
        }
        for name, near in inspection.nearest.items():
            most = int(near.likeness.argmax())
            details[f"median_likeness ({name})"] = float(np.median(near.likeness))
            details[f"most_alike ({name})"] = {"image": images.records[most].id, "likeness": float(near.likeness[most])}
        error = float(np.sqrt(rate.fraction * (1 - rate.fraction) / rate.count)) or None
        return Value(rate.fraction, error, rate.count, details=details)
