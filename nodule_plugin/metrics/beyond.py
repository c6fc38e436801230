"""Columns that tell what one distance hides: fidelity apart from coverage, and copies of training images."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

from nodule_plugin.data.image_set import GENERATED, REAL, ImageSet
from nodule_plugin.metrics.coverage import manifold_coverage
from nodule_plugin.metrics.distribution import half_sample_error
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.measures import BEYOND, HIGHER, DistanceMeasure, Measure, Value, missing
from nodule_plugin.metrics.memorization import TrainingIndex, copy_threshold


class CoverageMeasure(DistanceMeasure):
    """One of the four shares of :func:`manifold_coverage`.

    Args:
        share: "precision", "recall", "density" or "coverage".
        neighbours: see :func:`manifold_coverage`.
        key, name, extractor, standard, repeats, seed: see :class:`DistanceMeasure`.
    """

    better = HIGHER

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

    @property
    def group(self) -> str:
        return BEYOND

    def _distance(self, real: np.ndarray, fake: np.ndarray) -> Value:
        needed = self.neighbours + 1
        if min(len(real), len(fake)) < needed:
            return missing(f"{min(len(real), len(fake))} images, {needed} needed")
        error = None
        if min(len(real), len(fake)) >= 2 * needed:
            error = half_sample_error(self._share, real, fake, self.repeats, self.seed)
        return Value(self._share(real, fake), error, len(fake), details={"neighbours": self.neighbours})

    def _share(self, real: np.ndarray, fake: np.ndarray) -> float:
        return float(getattr(manifold_coverage(real, fake, self.neighbours), self.share))


class CopyMeasure(Measure):
    """Share of images that are copies of training images, see :mod:`nodule_plugin.metrics.memorization`.

    Args:
        training: images that the model was trained on; None: not given, see :attr:`unavailable`.
        false_alarms: share of held-out real images that may be called copies.
        key, name: see :class:`Measure`.
    """

    def __init__(self, key: str, name: str, training: ImageSet | None = None, false_alarms: float = 0.01) -> None:
        super().__init__(key, name, "correlation of grey values", standard=False)
        self.index = None if training is None else TrainingIndex(training.images)
        self.false_alarms = false_alarms

    @property
    def group(self) -> str:
        return BEYOND

    @property
    def unavailable(self) -> str | None:
        return "no training images given" if self.index is None else None

    def _measure(self, images: ImageSet, real: ImageSet) -> Value:
        if images.key.kind not in (REAL, GENERATED):
            return missing("not an image of a model")
        assert self.index is not None
        threshold = copy_threshold(self.index.find(real.images).likeness, self.false_alarms)
        found = self.index.find(images.images)
        copies = found.likeness > threshold
        share = float(copies.mean())
        # Exact: the normal interval has no width where no image or every image is a copy.
        interval = binomtest(int(copies.sum()), len(copies)).proportion_ci()
        most = int(found.likeness.argmax())
        details = {
            "ci95": [float(interval.low), float(interval.high)],
            "threshold": threshold,
            "median_likeness": float(np.median(found.likeness)),
            "most_alike": {"image": images.records[most].id, "likeness": float(found.likeness[most])},
        }
        error = float(np.sqrt(share * (1 - share) / len(copies))) or None
        return Value(share, error, len(copies), details=details)
