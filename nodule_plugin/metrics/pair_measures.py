"""Columns of the results table that rest on pairs of images: likeness to the source, diversity within a prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.metrics.intervals import mean_error
from nodule_plugin.metrics.measures import NEAR_REAL, Measure, Scale, Value, missing
from nodule_plugin.metrics.perceptual import PerceptualDistance


@dataclass(frozen=True, eq=False)
class PairDistanceMeasure(Measure):
    """Mean perceptual distance of each image to the real image it was generated from.

    Where no image names its source, to the real images with the same prompt, at most ``per_image`` of them.

    Args:
        key, name, group: see :class:`Measure`.
        distance: of two images.
        per_image: real images an image is compared with where its source is not known.
        batch_size: pairs at a time.
        seed: of the choice among them.
    """

    distance: PerceptualDistance
    per_image: int = 4
    batch_size: int = 32
    seed: int = 0
    scale = Scale()

    @property
    def network(self) -> str:
        return self.distance.name

    @property
    def unavailable(self) -> str | None:
        return self.distance.unavailable

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        if images is real:  # under shuffled prompts, the same images meet those of another prompt: the ceiling
            return missing("compared with itself")
        pairs, rule = self._pairs(images, real)
        if not pairs:
            return missing("no real image with the same source or prompt")
        distances = pair_distances(self.distance, images, real, pairs, self.batch_size, self.name)
        per_image = _means_by_first(pairs, distances)
        return Value(float(per_image.mean()), mean_error(per_image), len(per_image), details={"pairs": rule})

    def _pairs(self, images: ImageSet, real: ImageSet) -> tuple[list[tuple[int, int]], str]:
        index_of = {record.id: index for index, record in enumerate(real.records)}
        sources = [(i, index_of[r.source_id]) for i, r in enumerate(images.records) if r.source_id in index_of]
        if sources:
            return sources, "source"
        with_prompt = _indices_by_prompt(real)
        draw = np.random.default_rng(self.seed)
        pairs = []
        for index, record in enumerate(images.records):
            candidates = with_prompt.get(record.prompt or "", [])
            # One more than needed, since one of them may be the image itself.
            drawn = draw.choice(len(candidates), min(self.per_image + 1, len(candidates)), replace=False)
            others = [candidates[at] for at in drawn if real.records[candidates[at]].id != record.id]
            pairs += [(index, other) for other in others[: self.per_image]]
        return pairs, "prompt"


@dataclass(frozen=True, eq=False)
class DiversityMeasure(Measure):
    """Mean perceptual distance between two images of one set that share a prompt.

    Near 0 the model makes one picture a prompt; real images tell how much they should differ.

    Args:
        key, name, group: see :class:`Measure`.
        distance: of two images.
        per_prompt: pairs taken of a prompt at most.
        batch_size: pairs at a time.
        seed: of their choice.
    """

    distance: PerceptualDistance
    per_prompt: int = 20
    batch_size: int = 32
    seed: int = 0
    scale = Scale(NEAR_REAL, "standard deviation over prompts, divided by the root of their number")

    @property
    def network(self) -> str:
        return self.distance.name

    @property
    def unavailable(self) -> str | None:
        return self.distance.unavailable

    def _measure(self, images: ImageSet, real: ImageSet, training: ImageSet | None) -> Value:
        draw = np.random.default_rng(self.seed)
        pairs: list[tuple[int, int]] = []
        prompts: list[int] = []
        for number, indices in enumerate(_indices_by_prompt(images).values()):
            chosen = _some_pairs(indices, self.per_prompt, draw)
            pairs += chosen
            prompts += [number] * len(chosen)
        if not pairs:
            return missing("no two images share a prompt")
        distances = pair_distances(self.distance, images, images, pairs, self.batch_size, self.name)
        per_prompt = _means_by_first([(prompt, 0) for prompt in prompts], distances)
        return Value(float(per_prompt.mean()), mean_error(per_prompt), len(pairs), details={"prompts": len(per_prompt)})


def pair_distances(
    distance: PerceptualDistance,
    images: ImageSet,
    others: ImageSet,
    pairs: Sequence[tuple[int, int]],
    batch_size: int,
    description: str,
) -> np.ndarray:
    """The distance of every pair of indices into two sets; the second image is resized to the first one's size.

    Images are looked at in the order of the pairs and held until a batch of their size is full.
    """
    distances = np.empty(len(pairs))
    waiting: dict[torch.Size, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)

    def measure(batch: list[tuple[int, Tensor, Tensor]]) -> None:
        indices, ones, twos = zip(*batch)
        distances[list(indices)] = distance(torch.stack(ones), torch.stack(twos)).numpy()
        batch.clear()

    for index, (first, second) in enumerate(tqdm(pairs, desc=description, leave=False, delay=2)):
        one = _unit_range(images.images[first])
        batch = waiting[one.shape]
        batch.append((index, one, _resized(_unit_range(others.images[second]), one.shape[-2:])))
        if len(batch) == batch_size:
            measure(batch)
    for batch in waiting.values():
        if batch:
            measure(batch)
    return distances


def _some_pairs(indices: Sequence[int], most: int, draw: np.random.Generator) -> list[tuple[int, int]]:
    """At most ``most`` different pairs of indices, without a list of all of them, which grows with the square."""
    count = len(indices)
    total = count * (count - 1) // 2
    chosen = draw.choice(total, min(most, total), replace=False)
    # Pairs are numbered row by row of the triangle above the diagonal.
    rows = np.floor(count - 0.5 - np.sqrt((count - 0.5) ** 2 - 2.0 * chosen)).astype(int)
    columns = chosen - rows * (2 * count - rows - 1) // 2 + rows + 1
    return [(indices[row], indices[column]) for row, column in zip(rows, columns)]


def _unit_range(image: Tensor) -> Tensor:
    return image.float() / 127.5 - 1.0


def _resized(image: Tensor, size: torch.Size) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _indices_by_prompt(images: ImageSet) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(images.records):
        if record.prompt is not None:
            indices[record.prompt].append(index)
    return indices


def _means_by_first(pairs: Sequence[tuple[int, int]], values: np.ndarray) -> np.ndarray:
    _, group = np.unique([first for first, _ in pairs], return_inverse=True)
    return np.bincount(group, weights=values) / np.bincount(group)
