"""The columns of the results table: what is measured on a set of images, against which real ones, with which error.

A measure never fails for lack of weights or images: it then says why there is no number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.metrics.alignment import CLIPScorer, clip_scores, shuffle_prompts
from nodule_plugin.metrics.distribution import (
    MIN_IMAGES,
    frechet_distance,
    half_sample_error,
    kernel_distance,
    squared_mmd,
)
from nodule_plugin.metrics.features import FeatureExtractor
from nodule_plugin.metrics.image_set import ImageSet
from nodule_plugin.metrics.perceptual import PerceptualDistance

LOWER, HIGHER, NEAR_REAL = "lower", "higher", "near real"
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
        extractor: name of the network behind it.
        standard: True if it is the metric the literature knows by this name; False for a stand-in.
    """

    better = LOWER

    def __init__(self, key: str, name: str, extractor: str, standard: bool) -> None:
        self.key, self.name, self.extractor, self.standard = key, name, extractor, standard

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
        if images is real:
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


class PairDistanceMeasure(Measure):
    """Mean perceptual distance of each image to the real image it was generated from.

    Where no image names its source, to the real images with the same prompt, at most ``per_image`` of them.

    Args:
        key, name, standard: see :class:`Measure`.
        distance: of two images.
        per_image: real images an image is compared with where its source is not known.
        batch_size: pairs at a time.
        seed: of the choice among them.
    """

    def __init__(
        self,
        key: str,
        name: str,
        distance: PerceptualDistance,
        standard: bool,
        per_image: int = 4,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(key, name, distance.name, standard)
        self.distance, self.per_image, self.batch_size, self.seed = distance, per_image, batch_size, seed

    @property
    def unavailable(self) -> str | None:
        return self.distance.unavailable

    def _measure(self, images: ImageSet, real: ImageSet) -> Value:
        if images is real:
            return missing("compared with itself")
        pairs, rule = self._pairs(images, real)
        if not pairs:
            return missing("no real image with the same source or prompt")
        distances = pair_distances(self.distance, images, real, pairs, self.batch_size, self.name)
        per_image = _means_by_first(pairs, distances)
        return Value(float(per_image.mean()), _mean_error(per_image), len(per_image), details={"pairs": rule})

    def _pairs(self, images: ImageSet, real: ImageSet) -> tuple[list[tuple[int, int]], str]:
        place = {record.id: index for index, record in enumerate(real.records)}
        sources = [(i, place[r.source_id]) for i, r in enumerate(images.records) if r.source_id in place]
        if sources:
            return sources, "source"
        with_prompt = _places_by_prompt(real)
        draw = np.random.default_rng(self.seed)
        pairs = []
        for index, record in enumerate(images.records):
            candidates = [p for p in with_prompt.get(record.prompt or "", []) if real.records[p].id != record.id]
            chosen = draw.permutation(candidates)[: self.per_image]
            pairs += [(index, int(other)) for other in chosen]
        return pairs, "prompt"


class DiversityMeasure(Measure):
    """Mean perceptual distance between two images of one set that share a prompt.

    Near 0 the model makes one picture a prompt; real images tell how much they should differ.

    Args:
        key, name, standard: see :class:`Measure`.
        distance: of two images.
        per_prompt: pairs taken of a prompt at most.
        batch_size: pairs at a time.
        seed: of their choice.
    """

    better = NEAR_REAL

    def __init__(
        self,
        key: str,
        name: str,
        distance: PerceptualDistance,
        standard: bool,
        per_prompt: int = 20,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(key, name, distance.name, standard)
        self.distance, self.per_prompt, self.batch_size, self.seed = distance, per_prompt, batch_size, seed

    @property
    def unavailable(self) -> str | None:
        return self.distance.unavailable

    def _measure(self, images: ImageSet, real: ImageSet) -> Value:
        draw = np.random.default_rng(self.seed)
        pairs: list[tuple[int, int]] = []
        prompts: list[int] = []
        for number, places in enumerate(_places_by_prompt(images).values()):
            possible = [(a, b) for i, a in enumerate(places) for b in places[i + 1 :]]
            chosen = draw.permutation(len(possible))[: self.per_prompt]
            pairs += [possible[index] for index in chosen]
            prompts += [number] * len(chosen)
        if not pairs:
            return missing("no two images share a prompt")
        distances = pair_distances(self.distance, images, images, pairs, self.batch_size, self.name)
        per_prompt = _means_by_first([(prompt, 0) for prompt in prompts], distances)
        return Value(
            float(per_prompt.mean()), _mean_error(per_prompt), len(pairs), details={"prompts": len(per_prompt)}
        )


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
        super().__init__(key, name, extractor or str(scorer.clip.model or "none"), standard)
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
        return Value(float(scores.mean()), _mean_error(scores), len(scores), details=details)

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
            "above_shuffled_error": _mean_error(difference),
        }


def pair_distances(
    distance: PerceptualDistance,
    images: ImageSet,
    others: ImageSet,
    pairs: Sequence[tuple[int, int]],
    batch_size: int,
    description: str,
) -> np.ndarray:
    """The distance of every pair of places in two sets; the second image is resized to the first one's size."""
    distances: list[np.ndarray] = []
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for index, (first, _) in enumerate(pairs):
        by_size[images.images[first].shape].append(index)
    order = [index for indices in by_size.values() for index in indices]
    batches = [indices[i : i + batch_size] for indices in by_size.values() for i in range(0, len(indices), batch_size)]
    for batch in tqdm(batches, desc=description, leave=False):
        first = torch.stack([_unit_range(images.images[pairs[index][0]]) for index in batch])
        second = [_unit_range(others.images[pairs[index][1]]) for index in batch]
        distances.append(distance(first, torch.stack([_resized(image, first.shape[-2:]) for image in second])).numpy())
    in_order = np.empty(len(pairs))
    in_order[order] = np.concatenate(distances)
    return in_order


def _unit_range(image: Tensor) -> Tensor:
    return image.float() / 127.5 - 1.0


def _resized(image: Tensor, size: torch.Size) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _places_by_prompt(images: ImageSet) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(images.records):
        if record.prompt is not None:
            places[record.prompt].append(index)
    return places


def _means_by_first(pairs: Sequence[tuple[int, int]], values: np.ndarray) -> np.ndarray:
    _, place = np.unique([first for first, _ in pairs], return_inverse=True)
    return np.bincount(place, weights=values) / np.bincount(place)


def _mean_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error
