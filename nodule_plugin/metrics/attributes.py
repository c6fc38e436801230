"""Whether images show the findings that were asked for, rating by rating.

An ordinal regression from an encoder's and radiomic features to a rating is fitted on real training images and their
readers' ratings. Its reading of other images is set against the rating asked for (generated images) or given by the
readers (held-out real images, which show how well it reads).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from nodule_plugin.data.image_set import ATTACK, GENERATED, ImageRecord, ImageSet
from nodule_plugin.errors import InputError
from nodule_plugin.findings import CALCIFICATION_ABSENT, SCALES
from nodule_plugin.lidc.agreement import agreement
from nodule_plugin.metrics.feature_cache import Encoder
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.intervals import proportion_interval
from nodule_plugin.metrics.measures import HIGHER, NOT_HELD_OUT, Measure, Scale, Value, missing
from nodule_plugin.metrics.ordinal import OrdinalRegression, fit_with_chosen_penalty

MIN_TRAINING = 20
MIN_MEASURED = 5
PENALTIES = tuple(np.logspace(-3, 1, 9))


def rating_of(record: ImageRecord, rating: str) -> int | None:
    """An image's code on one scale; of calcification whether there is any (1 or 0); None where it is not known."""
    code = record.ratings.get(rating)
    if code is None:
        return None
    return int(code != CALCIFICATION_ABSENT) if rating == "calcification" else int(code)


@dataclass(frozen=True)
class Reading:
    """What was read off N images.

    Attributes:
        codes: (N,) most central code.
        expected: (N,) mean of the distribution over codes.
    """

    codes: np.ndarray
    expected: np.ndarray


class FindingReader:
    """Reads ratings off images as a reader would, having learnt from real training images only.

    Args:
        extractors: whose features are joined; those that are unavailable are left out.
    """

    def __init__(self, extractors: Sequence[FeatureExtractor]) -> None:
        self.extractors = [extractor for extractor in extractors if extractor.unavailable is None]
        self._fitted: dict[tuple[ImageSet, str], OrdinalRegression] = {}

    @property
    def name(self) -> str:
        """As tables name it."""
        return "ordinal regression on " + " and ".join(extractor.name for extractor in self.extractors)

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be read, or None."""
        return None if self.extractors else "no weights given"

    def objection(self, training: ImageSet | None, rating: str) -> str | None:
        """Why this rating cannot be learnt from these images, or None."""
        if training is None:
            return "no training images given"
        known = [rating_of(record, rating) for record in training.records]
        enough = sum(code is not None for code in known) >= MIN_TRAINING and len(set(known) - {None}) > 1
        return None if enough else f"too few training images with different {rating}"

    def read(self, images: ImageSet, rating: str, training: ImageSet) -> Reading:
        """Read one rating off images; learns it first where it has not yet."""
        if (training, rating) not in self._fitted:
            self._fitted[training, rating] = self._fit(training, rating)
        features = self._features(images)
        model = self._fitted[training, rating]
        return Reading(model.predict(features), model.expected(features))

    def _fit(self, training: ImageSet, rating: str) -> OrdinalRegression:
        codes = [rating_of(record, rating) for record in training.records]
        known = [index for index, code in enumerate(codes) if code is not None]
        patients = [training.records[index].patient_id or f"image {index}" for index in known]
        truth = np.array([codes[index] for index in known], dtype=int)
        groups = np.unique(patients, return_inverse=True)[1]
        return fit_with_chosen_penalty(self._features(training)[known], truth, groups, PENALTIES)

    def _features(self, images: ImageSet) -> np.ndarray:
        return np.concatenate([images.features_of(extractor.id).read() for extractor in self.extractors], axis=1)


@dataclass(frozen=True, eq=False)
class FindingMeasure(Measure):
    """Agreement of the rating asked for with the one read off the image: Cohen's kappa with quadratic weights.

    Args:
        key, name, group: see :class:`Measure`.
        rating: a name in :data:`nodule_plugin.findings.SCALES`.
        reader: of ratings.
        repeats: bootstrap draws for the standard error.
        seed: of those draws.
    """

    rating: str
    reader: FindingReader
    repeats: int = 200
    seed: int = 0
    scale = Scale(HIGHER, "bootstrap over images; exact binomial for fractions and where all codes agree", (-1.0, 1.0))

    @property
    def network(self) -> str:
        return self.reader.name

    @property
    def unavailable(self) -> str | None:
        return self.reader.unavailable

    def encoders(self, kind: str) -> list[Encoder]:
        return [] if kind == ATTACK else list(self.reader.extractors)

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        objection = self.reader.objection(training, self.rating)
        if objection or training is None:
            return missing(objection or "")
        # Off the images that it learnt from, the regression reads better than off others.
        if images.key.kind != GENERATED and (seen := images.of_patients(training)):
            return missing(NOT_HELD_OUT.format(seen, len(images)))
        asked = [rating_of(record, self.rating) for record in images.records]
        known = [index for index, code in enumerate(asked) if code is not None]
        if not known:
            return missing(f"{self.rating} is not asked for")
        if len(known) < MIN_MEASURED:
            return missing(f"{len(known)} images with known {self.rating}, {MIN_MEASURED} needed")
        wanted = np.array([asked[index] for index in known], dtype=int)
        if len(set(wanted)) < 2:
            return missing(f"all images ask for the same {self.rating}")
        reading = self.reader.read(images, self.rating, training)
        codes, expected = reading.codes[known], reading.expected[known]
        kappa = agreement(wanted.tolist(), codes.tolist()).kappa
        return Value(kappa, self._error(wanted, codes), len(known), details=_details(wanted, codes, expected))

    def _error(self, wanted: np.ndarray, codes: np.ndarray) -> float | None:
        draw = np.random.default_rng(self.seed)
        samples = [draw.integers(len(wanted), size=len(wanted)) for _ in range(self.repeats)]
        kappas = [agreement(wanted[sample].tolist(), codes[sample].tolist()).kappa for sample in samples]
        # A draw of one code only has no kappa.
        known = np.array([kappa for kappa in kappas if not np.isnan(kappa)])
        return float(known.std(ddof=1)) if len(known) > 1 else None


def finding_measures(reader: FindingReader, ratings: Sequence[str], seed: int = 0) -> list[Measure]:
    """A column for each rating, ``finding_<rating>``.

    Args:
        reader, seed: see :class:`FindingMeasure`.
        ratings: names in :data:`nodule_plugin.findings.SCALES`.

    Raises:
        InputError: for another name.
    """
    if unknown := [rating for rating in ratings if rating not in SCALES]:
        raise InputError(f"findings: there is no rating {unknown[0]!r}; choose among {', '.join(SCALES)}")
    return [FindingMeasure(f"finding_{rating}", rating.capitalize(), rating, reader, seed=seed) for rating in ratings]


def _details(wanted: np.ndarray, codes: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    agreed = agreement(wanted.tolist(), codes.tolist())
    commonest = int(np.bincount(wanted).max())
    rank = float(spearmanr(wanted, expected).statistic)
    return {
        "exact": agreed.exact,
        "exact_ci95": _interval(agreed.exact, agreed.count),
        "within_one": agreed.within_one,
        "within_one_ci95": _interval(agreed.within_one, agreed.count),
        **({"ci95": [_kappa_at_least(wanted), 1.0]} if agreed.exact == 1.0 else {}),
        # What reading the commonest code off every image would score.
        "exact_of_commonest": commonest / agreed.count,
        "rank_correlation": None if np.isnan(rank) else rank,
        "mean_error": float(np.abs(expected - wanted).mean()),
    }


def _kappa_at_least(wanted: np.ndarray) -> float:
    """Lower end of the interval of a perfect kappa: as many codes differ, by one, as chance may have hidden."""
    hidden = 1.0 - _interval(1.0, len(wanted))[0]
    by_chance = float(np.square(wanted[:, None] - wanted).mean())
    return max(-1.0, 1.0 - hidden / by_chance)


def _interval(fraction: float, count: int) -> list[float]:
    return proportion_interval(round(fraction * count), count)
