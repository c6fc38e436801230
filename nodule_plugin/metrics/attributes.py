"""Whether generated images show the findings that were asked for, rating by rating.

A ridge regression from an image encoder's features to a rating is fitted on the training images and their readers'
ratings. Its reading of other images is set against the rating asked for (generated images) or given (real ones, which
show how well it reads).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from nodule_plugin.data.image_set import ImageRecord, ImageSet
from nodule_plugin.findings import CALCIFICATION_ABSENT
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.measures import FINDINGS, HIGHER, Encoder, Measure, Value, missing

MIN_TRAINING = 20
MIN_MEASURED = 5
PENALTIES = np.logspace(0, 4, 9)
BATCH = 64


def fit_rating(features: Tensor, ratings: np.ndarray) -> Pipeline:
    """A ridge regression on standardised features, its penalty chosen by leave-one-out error.

    Args:
        features: (N, D).
        ratings: (N,) codes.
    """
    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features.numpy(), ratings)


def rating_of(record: ImageRecord, rating: str) -> float | None:
    """An image's code on one scale; of calcification whether there is any (1 or 0); None where it is not known."""
    code = record.ratings.get(rating)
    if code is None:
        return None
    return float(code != CALCIFICATION_ABSENT) if rating == "calcification" else float(code)


class FindingMeasure(Measure):
    """Spearman's rank correlation between the rating asked for and the rating read off the image.

    Args:
        key, name: see :class:`Measure`.
        rating: a name in :data:`nodule_plugin.findings.SCALES`.
        extractor: of the features.
        training: images with ratings, none of them among those measured; None: not given, see :attr:`unavailable`.
        repeats: bootstrap draws for the standard error.
        seed: of those draws.
    """

    better = HIGHER

    def __init__(
        self,
        key: str,
        name: str,
        rating: str,
        extractor: FeatureExtractor,
        training: ImageSet | None = None,
        repeats: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(key, name, f"ridge regression on {extractor.name}", standard=False)
        self.rating, self.features, self.training = rating, extractor, training
        self.repeats, self.seed = repeats, seed

    @property
    def group(self) -> str:
        return FINDINGS

    @property
    def unavailable(self) -> str | None:
        if self.features.unavailable:
            return self.features.unavailable
        if self.training is None:
            return "no training images given"
        known = [rating_of(record, self.rating) for record in self.training.records]
        enough = sum(value is not None for value in known) >= MIN_TRAINING and len(set(known) - {None}) > 1
        return None if enough else f"too few training images with different {self.rating}"

    @property
    def encoder(self) -> Encoder:
        return self.features

    def _measure(self, images: ImageSet, real: ImageSet) -> Value:
        asked = [rating_of(record, self.rating) for record in images.records]
        places = [place for place, value in enumerate(asked) if value is not None]
        wanted = np.array([value for value in asked if value is not None])
        if len(places) < MIN_MEASURED:
            return missing(f"{len(places)} images with known {self.rating}, {MIN_MEASURED} needed")
        if len(set(wanted)) < 2:
            return missing(f"all images ask for the same {self.rating}")
        read = self._regression.predict(images.features[self.features.id][places].numpy())
        correlation = float(spearmanr(wanted, read).statistic)
        if np.isnan(correlation):
            return missing("all images look the same to the regression")
        details: dict[str, Any] = {"mean_error": float(np.abs(read - wanted).mean())}
        return Value(correlation, self._error(wanted, read), len(places), details=details)

    def _error(self, wanted: np.ndarray, read: np.ndarray) -> float | None:
        draw = np.random.default_rng(self.seed)
        samples = [draw.integers(len(wanted), size=len(wanted)) for _ in range(self.repeats)]
        # A draw of one rating only has no ranks to correlate.
        usable = [sample for sample in samples if len(set(wanted[sample])) > 1 and len(set(read[sample])) > 1]
        if len(usable) < 2:
            return None
        return float(np.std([spearmanr(wanted[sample], read[sample]).statistic for sample in usable], ddof=1))

    @cached_property
    def _regression(self) -> Pipeline:
        assert self.training is not None
        known = [rating_of(record, self.rating) for record in self.training.records]
        places = [place for place, value in enumerate(known) if value is not None]
        ratings = np.array([value for value in known if value is not None])
        return fit_rating(self._training_features()[places], ratings)

    def _training_features(self) -> Tensor:
        assert self.training is not None
        if self.features.id not in self.training.features:
            images = [image.float() / 127.5 - 1.0 for image in self.training.images]
            batches = [torch.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
            self.training.features[self.features.id] = torch.cat([self.features(batch) for batch in batches])
        return self.training.features[self.features.id]
