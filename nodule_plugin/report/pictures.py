"""The pictures of an evaluation's page: by finding and guidance scale, closest pairs, dose response.

Real images are among them only where they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from nodule_plugin.data.image_set import DOSE, GENERATED, REAL, TRAINING, ImageRecord, ImageSet
from nodule_plugin.findings import CALCIFICATION_ABSENT, SCALES
from nodule_plugin.report.html import data_url, png
from nodule_plugin.report.numbers import scale_text, set_title

MAX_ROWS = 10
SAMPLE_PIXELS = 128


@dataclass(frozen=True)
class Shown:
    """A row of the grid.

    Attributes:
        title: the finding, or what else the row shows.
        record: of the generated image that the row's pictures have their findings from.
        finding: rating and code, where the row stands for one.
    """

    title: str
    record: ImageRecord
    finding: tuple[str, int] | None = None


def sample_grids(sets: Sequence[ImageSet], show_real: bool) -> list[dict[str, Any]]:
    """One grid a model: a row a finding, a column a guidance scale; real images of the same findings before them."""
    columns = [images for images in sets if images.key.kind == GENERATED and images.records]
    columns.sort(key=lambda images: (images.key.model, images.key.guidance_scale or 0.0))
    real = [images for images in sets if images.key.kind == REAL] if show_real else []
    grids = []
    for model in dict.fromkeys(images.key.model for images in columns):
        own = [*real, *(images for images in columns if images.key.model == model)]
        rows = [
            {
                "title": shown.title,
                "prompt": shown.record.prompt or "",
                "pictures": [_counterpart(images, shown) for images in own],
            }
            for shown in shown_rows(own[len(real)].records)
        ]
        grids.append({"model": model, "headings": [_heading(images) for images in own], "rows": rows})
    return grids


def shown_rows(records: Sequence[ImageRecord], most: int = MAX_ROWS) -> list[Shown]:
    """What a grid shows: of each rating the lowest and the highest code asked for; without ratings, some images.

    Each row is another image's findings where there are enough, so that the grid is as varied as can be.
    """
    rows: list[Shown] = []
    for rating, code in _extremes(records)[:most]:
        having = [record for record in records if record.ratings.get(rating) == code]
        used = {row.record.id for row in rows}
        record = next((record for record in having if record.id not in used), having[0])
        rows.append(Shown(f"{rating.capitalize()}: {SCALES[rating].labels[code]}", record, (rating, code)))
    return rows or [Shown(f"Image {number}", record) for number, record in enumerate(records[:most], start=1)]


def _extremes(records: Sequence[ImageRecord]) -> list[tuple[str, int]]:
    """The lowest and the highest code of each rating that differs among images, in the order of the scales."""
    asked = {rating: {r.ratings[rating] for r in records if rating in r.ratings} for rating in SCALES}
    # Calcification's codes are kinds; the two that matter are none and the commonest of the others.
    kinds = [c for r in records if (c := r.ratings.get("calcification", CALCIFICATION_ABSENT)) != CALCIFICATION_ABSENT]
    if kinds:
        asked["calcification"] &= {CALCIFICATION_ABSENT, max(sorted(set(kinds)), key=kinds.count)}
    return [(rating, code) for rating, codes in asked.items() if len(codes) > 1 for code in (min(codes), max(codes))]


def _counterpart(images: ImageSet, shown: Shown) -> str | None:
    """The picture of a set that comes nearest to a row: of the same source, prompt or finding."""
    source, prompt, finding = shown.record.source_id, shown.record.prompt, shown.finding

    def likeness(record: ImageRecord) -> tuple[bool, bool, bool]:
        same_source = source is not None and source in (record.id, record.source_id)
        has_finding = finding is not None and record.ratings.get(finding[0]) == finding[1]
        return same_source or record.id == shown.record.id, prompt is not None and record.prompt == prompt, has_finding

    index = max(range(len(images)), key=lambda index: likeness(images.records[index]))
    found = any(likeness(images.records[index]))
    return data_url(small_png(images.images[index])) if found else None


def _heading(images: ImageSet) -> str:
    return "real" if images.key.kind == REAL else scale_text(images.key.guidance_scale)


def dose_strips(sets: Sequence[ImageSet]) -> list[dict[str, Any]]:
    """For each dose-response set: a row a rating, a column a code, the pictures of its first seed."""
    strips = []
    for images in sets:
        if images.key.kind != DOSE or not images.records:
            continue
        base, seed = images.records[0].ratings, images.records[0].seed
        of_seed = {index: record for index, record in enumerate(images.records) if record.seed == seed}
        rows, codes = [], sorted({code for record in of_seed.values() for code in record.ratings.values()})
        for rating in base:
            indices = {
                record.ratings[rating]: index
                for index, record in of_seed.items()
                if all(code == base[name] for name, code in record.ratings.items() if name != rating)
            }
            if len(indices) > 1:
                pictures = [data_url(small_png(images.images[indices[c]])) if c in indices else None for c in codes]
                rows.append({"title": rating.capitalize(), "prompt": "", "pictures": pictures})
        strips.append({"model": set_title(images.key.model, images.key.guidance_scale), "codes": codes, "rows": rows})
    return strips


def closest_pairs(results: Mapping[str, Any], sets: Sequence[ImageSet], show_real: bool) -> list[dict[str, Any]]:
    """The closest pairs with their pictures; of training images only where real ones may be shown."""
    memorization = results["studies"]["memorization"]
    pairs = memorization["closest_pairs"] if memorization else []
    shown = []
    for pair in pairs:
        own = next(s for s in sets if s.key.kind == GENERATED and _is_row(s, pair))
        training = next(s for s in sets if s.key.kind == TRAINING)
        shown.append(
            {
                **pair,
                "title": set_title(own.key.model, own.key.guidance_scale),
                "generated": _picture_of(own, pair["image"]),
                "training_picture": _picture_of(training, pair["training"]) if show_real else None,
            }
        )
    return shown


def _is_row(images: ImageSet, row: Mapping[str, Any]) -> bool:
    return (images.key.model, images.key.guidance_scale) == (row["model"], row["guidance_scale"])


def _picture_of(images: ImageSet, image_id: str) -> str:
    index = next(index for index, record in enumerate(images.records) if record.id == image_id)
    return data_url(small_png(images.images[index]))


def small_png(image: Tensor) -> bytes:
    """A (3, H, W) picture of 8 bits as a PNG file of at most :data:`SAMPLE_PIXELS` a side."""
    picture = Image.fromarray(image[0].numpy())
    if max(picture.size) > SAMPLE_PIXELS:
        picture.thumbnail((SAMPLE_PIXELS, SAMPLE_PIXELS))
    return png(picture)
