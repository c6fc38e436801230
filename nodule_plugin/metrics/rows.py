"""The rows of the results table: real images, their own floor, every model and guidance scale, and bad images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL, ImageSet, SetKey
from nodule_plugin.metrics.alignment import shuffle_prompts
from nodule_plugin.metrics.measures import Measure, Value

FLOOR = SetKey(CONTROL, "real images, half against half")
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
        sets: exactly one of kind "real", any number of generated ones and controls.
        measures: the columns.
        seed: of the real images' halves and of shuffled prompts.

    Returns:
        Rows in the table's order: real images, the floor (the real images' two halves against each other, which no
        generated set of that size can be expected to fall below), generated sets by model and guidance scale, controls.
    """
    real = next(images for images in sets if images.key.kind == REAL)
    generated = [images for images in sets if images.key.kind == GENERATED]
    generated.sort(key=lambda images: (images.key.model, images.key.guidance_scale or 0.0))
    controls = [images for images in sets if images.key.kind == CONTROL]
    compared: list[tuple[ImageSet, ImageSet]] = [(real, real)]
    if len(real) > 1:
        compared.append(real_halves(real, seed))
    compared += [(images, real) for images in (*generated, *controls)]
    if (wrong := _wrong_prompts(real, seed)) is not None:
        compared.append((wrong, real))
    rows = []
    for images, reference in tqdm(compared, desc="rows"):
        values = {measure.key: measure.measure(images, reference) for measure in measures}
        prompts = {record.prompt for record in images.records if record.prompt is not None}
        rows.append(Row(images.key, len(images), len(prompts), values))
    return rows


def real_halves(real: ImageSet, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """The real images in two halves; no patient is in both where patients are known."""
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(real.records):
        groups.setdefault(record.patient_id or f"image {place}", []).append(place)
    halves: tuple[list[int], list[int]] = ([], [])
    names = sorted(groups)
    for index in np.random.default_rng(seed).permutation(len(names)):
        min(halves, key=len).extend(groups[names[index]])
    return real.take(sorted(halves[0]), FLOOR), real.take(sorted(halves[1]), FLOOR)


def _wrong_prompts(real: ImageSet, seed: int) -> ImageSet | None:
    prompts = real.prompts()
    if prompts is None or 2 * max(prompts.count(prompt) for prompt in set(prompts)) > len(prompts):
        return None
    return real.with_prompts(shuffle_prompts(prompts, seed), WRONG_PROMPTS)
