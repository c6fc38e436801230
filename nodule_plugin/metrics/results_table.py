"""The rows of the results table: real images, their own floor, every model and guidance scale, and bad images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.metrics.alignment import shuffle_prompts
from nodule_plugin.metrics.distances import DistanceMeasure
from nodule_plugin.metrics.measures import Measure, Value, missing

FLOOR = SetKey(CONTROL, "real images, half against half")
HALVINGS = 20
WRONG_PROMPTS = SetKey(CONTROL, "real images, prompts shuffled")


@dataclass(frozen=True)
class Row:
    """A row's images, and its values in the order of the columns, by the measures' keys."""

    key: SetKey
    count: int
    prompts: int
    values: dict[str, Value]


def measure_rows(sets: Sequence[ImageSet], measures: Sequence[Measure], seed: int = 0) -> list[Row]:
    """Measure every set, and what real images themselves give.

    Args:
        sets: exactly one of kind "real", any number of generated ones and controls, at most one of training images;
            others are no rows and passed over.
        measures: the columns.
        seed: of the real images' halves and of shuffled prompts.

    Returns:
        Rows in the table's order: real images, the floor (the real images' two halves against each other, which no
        generated set of that size can be expected to fall below), generated sets by model and guidance scale, controls.
    """
    real = next(images for images in sets if images.key.kind == REAL)
    training = next((images for images in sets if images.key.kind == TRAINING), None)
    generated = [images for images in sets if images.key.kind == GENERATED]
    generated.sort(key=lambda images: (images.key.model, images.key.guidance_scale or 0.0))
    controls = [images for images in sets if images.key.kind == CONTROL]
    others = [*generated, *controls]
    if (wrong := _wrong_prompts(real, seed)) is not None:
        others.append(wrong)
    floor = len(real) > 1
    with tqdm(total=(1 + floor + len(others)) * len(measures), desc="measuring", unit="number") as progress:
        rows = [_row(real, real, training, measures, progress)]
        if floor:
            rows.append(_floor_row(real, training, measures, seed, progress))
        return rows + [_row(images, real, training, measures, progress) for images in others]


def _row(
    images: ImageSet,
    reference: ImageSet,
    training: ImageSet | None,
    measures: Sequence[Measure],
    progress: tqdm[Any],
) -> Row:
    values = {}
    for measure in measures:
        _announce(progress, measure, images)
        values[measure.key] = measure.measure(images, reference, training)
        progress.update()
    prompts = {record.prompt for record in images.records if record.prompt is not None}
    return Row(images.key, len(images), len(prompts), values)


def _announce(progress: tqdm[Any], measure: Measure, images: ImageSet) -> None:
    """Say what is computed: the measure, and of which images."""
    scale = "" if images.key.guidance_scale is None else f" at {images.key.guidance_scale:g}"
    progress.set_description(f"measuring {measure.name}: {images.key.model}{scale}")


def _floor_row(
    real: ImageSet, training: ImageSet | None, measures: Sequence[Measure], seed: int, progress: tqdm[Any]
) -> Row:
    """Distances between sets as mean and standard deviation over many halvings; the rest from the first of them."""
    halvings = [real_halves(real, seed + index) for index in range(HALVINGS)]
    single = [measure for measure in measures if not isinstance(measure, DistanceMeasure)]
    row = _row(*halvings[0], training, single, progress)
    values = dict(row.values)
    for measure in measures:
        if isinstance(measure, DistanceMeasure):
            _announce(progress, measure, halvings[0][0])
            values[measure.key] = _over_halvings(measure, halvings)
            progress.update()
    return Row(row.key, row.count, row.prompts, {measure.key: values[measure.key] for measure in measures})


def _over_halvings(measure: DistanceMeasure, halvings: Sequence[tuple[ImageSet, ImageSet]]) -> Value:
    if measure.unavailable:
        return missing(measure.unavailable)
    if (objection := measure.objection(*halvings[0])) is not None:
        return missing(objection)
    known = [value for value in (measure.between(*halves) for halves in halvings) if value is not None]
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    count = len(halvings[0][0])
    return Value(float(np.mean(known)), deviation, count, None, {"halvings": len(known)}, measure.scale.bounds)


def real_halves(real: ImageSet, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """The real images in two halves; no patient is in both where patients are known."""
    first, second = half_indices(real.records, seed)
    return real.take(first, FLOOR), real.take(second, FLOOR)


def half_indices(records: Sequence[ImageRecord], seed: int = 0) -> tuple[list[int], list[int]]:
    """Which images :func:`real_halves` takes, in ascending order."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.patient_id or f"image {index}", []).append(index)
    halves: tuple[list[int], list[int]] = ([], [])
    names = sorted(groups)
    for group in np.random.default_rng(seed).permutation(len(names)):
        min(halves, key=len).extend(groups[names[group]])
    return sorted(halves[0]), sorted(halves[1])


def _wrong_prompts(real: ImageSet, seed: int) -> ImageSet | None:
    prompts = real.prompts()
    if prompts is None or 2 * max(Counter(prompts).values()) > len(prompts):
        return None
    return real.with_prompts(shuffle_prompts(prompts, seed), WRONG_PROMPTS)
