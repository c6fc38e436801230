"""Distances between two sets of images as columns: what features they are of, and which statistic of these they are.

To add a network, name an extractor and the statistics wanted of its features; to add a statistic, a line in
:data:`STATISTICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.coverage import Coverage, coverage_of_halves, coverage_of_sets
from nodule_plugin.metrics.feature_cache import Encoder
from nodule_plugin.metrics.features import FeatureExtractor, InceptionFeatures
from nodule_plugin.metrics.frechet import (
    Extrapolation,
    enough_to_extrapolate,
    extrapolate_frechet_distance,
    frechet_distance,
    frechet_error,
)
from nodule_plugin.metrics.grey_values import GreyValueFeatures, histogram_distance, mean_rows
from nodule_plugin.metrics.intervals import proportion_interval
from nodule_plugin.metrics.kernel import cmmd, cmmd_error, kernel_distance, kernel_error
from nodule_plugin.metrics.measures import HIGHER, MEASURED, Measure, Scale, Value, missing
from nodule_plugin.metrics.noise_power import noise_power_distance, sized_powers
from nodule_plugin.metrics.two_samples import MIN_IMAGES, checked_pair, half_sample_error

Details = dict[str, Any]
ON_INCEPTION = ("fid", "fid_infinity", "kid")
"""Names that belong to distances of Inception's features alone."""
HALVES = "delete-half jackknife"
ONE_BY_ONE = "delete-one jackknife"


@dataclass(frozen=True)
class Statistic:
    """How far apart two sets' features are.

    Attributes:
        value: features of real and of generated images -> the number, and further ones by name.
        error: of the same -> its standard error; NaN where it is not known.
        scale: how the number is to be read.
        objection: of the same -> why these two cannot be compared, or None.
        features: a set, the real one and the extractor's id -> the set's features, where they need what is known of it.
    """

    value: Callable[[FeatureRows, FeatureRows], tuple[float, Details]]
    error: Callable[[FeatureRows, FeatureRows], float]
    scale: Scale
    objection: Callable[[FeatureRows, FeatureRows], str | None] = lambda real, fake: None
    features: Callable[[ImageSet, ImageSet, str], FeatureRows] = lambda images, real, name: images.features_of(name)


@dataclass(frozen=True, eq=False)
class DistanceMeasure(Measure):
    """A statistic of the features of two sets.

    Args:
        key, name, group: see :class:`Measure`.
        extractor: of the features.
        statistic: of these.
    """

    extractor: FeatureExtractor
    statistic: Statistic

    @property
    def scale(self) -> Scale:
        return self.statistic.scale

    @property
    def network(self) -> str:
        return self.extractor.name

    @property
    def unavailable(self) -> str | None:
        return self.extractor.unavailable

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        return getattr(self.extractor, "convention", {})

    def encoders(self, kind: str) -> list[Encoder]:
        return [self.extractor] if kind in MEASURED else []

    def objection(self, images: ImageSet, real: ImageSet) -> str | None:
        """Why there is no distance between these two, or None."""
        if images.images is real.images:
            return "compared with itself"
        for count, kind in ((len(real), "real"), (len(images), images.key.kind)):
            if count < MIN_IMAGES:
                return f"{count} {kind} image{'' if count == 1 else 's'}, {MIN_IMAGES} needed"
        return self.statistic.objection(*self._features(images, real))

    def between(self, images: ImageSet, real: ImageSet) -> float | None:
        """The distance alone, without its error; None where it cannot be computed."""
        return None if self.objection(images, real) else self.statistic.value(*self._features(images, real))[0]

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        if objection := self.objection(images, real):
            return missing(objection)
        features = self._features(images, real)
        value, details = self.statistic.value(*features)
        error = self.statistic.error(*features)
        known = None if math.isnan(error) else error
        return Value(value, known, len(images), details={"real_count": len(real), **details})

    def _features(self, images: ImageSet, real: ImageSet) -> tuple[FeatureRows, FeatureRows]:
        one, other = (self.statistic.features(own, real, self.extractor.id) for own in (real, images))
        return one, other


@dataclass(frozen=True)
class Distances:
    """Columns of distances, all computed with the same settings.

    ``Distances()(extractor, "fd", "kd", suffix="tiny")`` are two columns: ``fd_tiny`` and ``kd_tiny``, "FD (...)" and
    "KD (...)" with the extractor's name. Without a suffix key and name are those of the statistic.

    Args:
        repeats: halves drawn for standard errors where a jackknife needs them.
        seed: of all that is drawn.
        subsets, subset_size: see :func:`kernel_distance`.
        neighbours: see :func:`nodule_plugin.metrics.coverage.manifold_coverage`.
    """

    repeats: int = 50
    seed: int = 0
    subsets: int = 100
    subset_size: int = 1000
    neighbours: int = 5

    def __call__(self, extractor: FeatureExtractor, *statistics: str, suffix: str = "") -> list[Measure]:
        """A column for each of the :data:`STATISTICS` named.

        Raises:
            InputError: for an unknown statistic, or one whose name belongs to another network's features.
        """
        measures: list[Measure] = []
        for key in statistics:
            if key not in STATISTICS:
                raise InputError(f"distances: there is no {key!r}; choose among {', '.join(STATISTICS)}")
            if key in ON_INCEPTION and not isinstance(extractor, InceptionFeatures):
                raise InputError(f"distances: {key} is of Inception's features, not of {extractor.name}; take fd or kd")
            title, make = STATISTICS[key]
            name = f"{title} ({extractor.name})" if suffix else title
            own = f"{key}_{suffix}" if suffix else key
            measures.append(DistanceMeasure(own, name, extractor, make(self, extractor)))
        return measures

    def on_each(self, extractors: Sequence[FeatureExtractor], *statistics: str, suffix: str) -> list[Measure]:
        """The same columns of each of several extractors, their suffixes numbered from 1."""
        numbered = enumerate(extractors, start=1)
        return [column for number, one in numbered for column in self(one, *statistics, suffix=f"{suffix}{number}")]


def _frechet(settings: Distances, extractor: Any) -> Statistic:
    scale = Scale(
        interval=f"{HALVES}; delta method where both sets hold more than twice as many images as dimensions",
        bounds=(0.0, math.inf),
    )
    return Statistic(
        # Fewer images than dimensions leave directions without spread: the number then depends on how many there were.
        lambda real, fake: (frechet_distance(real, fake), {"dimensions": real.shape[1]}),
        lambda real, fake: frechet_error(real, fake, settings.repeats, settings.seed),
        scale,
    )


def _extrapolated_frechet(settings: Distances, extractor: Any) -> Statistic:
    @lru_cache(maxsize=1)  # the number and its error come from one computation
    def extrapolation(real: FeatureRows, fake: FeatureRows) -> Extrapolation:
        return extrapolate_frechet_distance(real, fake, repeats=settings.repeats, seed=settings.seed)

    def value(real: FeatureRows, fake: FeatureRows) -> tuple[float, Details]:
        line = extrapolation(real, fake)
        return line.value, {"sizes": line.sizes, "distances": line.distances}

    def objection(real: FeatureRows, fake: FeatureRows) -> str | None:
        dimensions = real.shape[1]
        if enough_to_extrapolate(len(real), len(fake), dimensions):
            return None
        needed = f"{2 * dimensions + 2} needed (twice the {dimensions} features)"
        return f"{min(len(real), len(fake))} images, {needed}"

    scale = Scale(interval="delta method, and the scatter about the line that is extrapolated")
    return Statistic(value, lambda real, fake: extrapolation(real, fake).error, scale, objection)


def _kernel(settings: Distances, extractor: Any) -> Statistic:
    def value(real: FeatureRows, fake: FeatureRows) -> tuple[float, Details]:
        distance = kernel_distance(real, fake, settings.subsets, settings.subset_size, settings.seed)
        return distance.mean, {"subset_std": distance.std}

    return Statistic(value, kernel_error, Scale(interval=ONE_BY_ONE))


def _cmmd(settings: Distances, extractor: Any) -> Statistic:
    scale = Scale(interval=ONE_BY_ONE, bounds=(0.0, math.inf))
    return Statistic(lambda real, fake: (cmmd(real, fake), {}), cmmd_error, scale)


def _of_spread(make: Callable[[Distances, Any], Statistic], settings: Distances, extractor: Any) -> Statistic:
    """A statistic of features in units of their spread among the real images: none counts more for its unit alone.

    Of radiomic features it is the Fréchet radiomics distance, or the kernel one. Source: Konz et al., "Fréchet
    Radiomic Distance (FRD)", arXiv:2412.01496; the features are :data:`nodule_plugin.metrics.radiomics.FEATURES`, fewer
    than theirs.
    """
    plain = make(settings, extractor)
    return replace(
        plain,
        value=lambda real, fake: plain.value(*_in_units_of_spread(real, fake)),
        error=lambda real, fake: plain.error(*_in_units_of_spread(real, fake)),
    )


@lru_cache(maxsize=2)
def _in_units_of_spread(real: FeatureRows, fake: FeatureRows) -> tuple[FeatureRows, FeatureRows]:
    reference, other = (rows.read() for rows in checked_pair(real, fake))
    mean, spread = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    spread = np.where(spread > 0, spread, 1.0)
    return FeatureRows((reference - mean) / spread), FeatureRows((other - mean) / spread)


def _histogram(settings: Distances, extractor: GreyValueFeatures) -> Statistic:
    def between(real: FeatureRows, fake: FeatureRows) -> float:
        return histogram_distance(mean_rows(real), mean_rows(fake), extractor.window_hu)

    return _by_halves(settings, between)


def _noise_power(settings: Distances, extractor: Any) -> Statistic:
    def objection(real: FeatureRows, fake: FeatureRows) -> str | None:
        uncovered = math.isnan(noise_power_distance(real, fake))
        return f"no frequency at which {MIN_IMAGES} images of both sets count" if uncovered else None

    return replace(_by_halves(settings, noise_power_distance), objection=objection, features=sized_powers)


def _by_halves(settings: Distances, between: Callable[[FeatureRows, FeatureRows], float]) -> Statistic:
    return Statistic(
        lambda real, fake: (between(real, fake), {}),
        lambda real, fake: half_sample_error(between, real, fake, settings.repeats, settings.seed),
        Scale(interval=HALVES, bounds=(0.0, math.inf)),
    )


def _covered(fraction: str, settings: Distances, extractor: Any) -> Statistic:
    """One of the four fractions of :class:`Coverage`, which come from one computation."""
    neighbours, bounds = settings.neighbours, (0.0, math.inf if fraction == "density" else 1.0)

    def of(coverage: Coverage) -> float:
        return float(getattr(coverage, fraction))

    def value(real: FeatureRows, fake: FeatureRows) -> tuple[float, Details]:
        number, details = of(coverage_of_sets(real, fake, neighbours)), {"neighbours": neighbours}
        if fraction != "density" and number in bounds:
            # All halves agree where all images do: the jackknife then sees no error.
            count = len(fake if fraction == "precision" else real)
            return number, {**details, "ci95": proportion_interval(round(number * count), count)}
        return number, details

    def error(real: FeatureRows, fake: FeatureRows) -> float:
        if min(len(real), len(fake)) < 2 * (neighbours + 1):
            return float("nan")
        halves = coverage_of_halves(real, fake, neighbours, settings.repeats, settings.seed)
        return float(np.std([of(coverage) for coverage in halves], ddof=1))

    def objection(real: FeatureRows, fake: FeatureRows) -> str | None:
        count, needed = min(len(real), len(fake)), neighbours + 1
        return f"{count} images, {needed} needed" if count < needed else None

    interval = f"{HALVES}; exact binomial where all images or none count"
    return Statistic(value, error, Scale(HIGHER, interval, bounds), objection)


STATISTICS: dict[str, tuple[str, Callable[[Distances, Any], Statistic]]] = {
    "fid": ("FID", _frechet),
    "fd": ("FD", _frechet),
    "fid_infinity": ("FID∞", _extrapolated_frechet),
    "fd_infinity": ("FD∞", _extrapolated_frechet),
    "kid": ("KID", _kernel),
    "kd": ("KD", _kernel),
    "cmmd": ("CMMD", _cmmd),
    "frd": ("Fréchet radiomics distance", partial(_of_spread, _frechet)),
    "krd": ("Kernel radiomics distance", partial(_of_spread, _kernel)),
    "hu_histogram": ("HU histogram distance (HU)", _histogram),
    "noise_power": ("Noise power difference (dB)", _noise_power),
    "precision": ("Precision", partial(_covered, "precision")),
    "recall": ("Recall", partial(_covered, "recall")),
    "density": ("Density", partial(_covered, "density")),
    "coverage": ("Coverage", partial(_covered, "coverage")),
}
"""Key -> heading, and the statistic of an extractor's features under the settings of :class:`Distances`."""
