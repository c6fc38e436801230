"""One self-contained HTML page: verdict, tables, figure, samples, settings. It loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from PIL import Image
from torch import Tensor

from nodule_plugin.data.image_set import DOSE, GENERATED, REAL, TRAINING, ImageRecord, ImageSet
from nodule_plugin.report.figures import dose_panels, grey_value_panels, guidance_panels, nearness_panels, sweep_panels
from nodule_plugin.report.html import data_url, png, render
from nodule_plugin.report.numbers import set_title
from nodule_plugin.report.studies import agreement_table, copies_table, detector_sentences, dose_table
from nodule_plugin.report.tables import FOOTNOTES, TITLES, extractor_lines, groups, table

MAX_PROMPTS = 8
SAMPLE_PIXELS = 128


def render_page(results: Mapping[str, Any], sets: Sequence[ImageSet], show_real: bool = False) -> str:
    """The page as HTML text.

    Args:
        results: the content of metrics.json.
        sets: the images, for the samples.
        show_real: show real images beside generated ones of the same prompt.
    """
    tables = [
        {
            "title": TITLES[group],
            "headings": table(results, group)[0],
            "rows": table(results, group)[1] if _computed(results, group) else [],
            "absent": _why_absent(results, group),
            "footnote": FOOTNOTES[group],
            "extractors": extractor_lines(results, group),
        }
        for group in sorted(groups(results), key=lambda group: not _computed(results, group))
    ]
    return render(
        "page.html",
        results=results,
        tables=tables,
        panels={name: data_url(panel) for name, panel in guidance_panels(results).items()},
        samples=sample_grids(sets, show_real),
        studies=Markup(render_studies(results, sets, show_real)),
        settings=json.dumps(results["settings"], indent=2, ensure_ascii=False, default=str),
    )


def render_studies(results: Mapping[str, Any], sets: Sequence[ImageSet], show_real: bool) -> str:
    """The section of the page on guidance, findings and copies, as HTML text."""
    pictures = {
        name: {title: data_url(panel) for title, panel in panels.items()}
        for name, panels in (
            ("sweep_panels", sweep_panels(results)),
            ("dose_panels", dose_panels(results)),
            ("grey_value_panels", grey_value_panels(results)),
            ("nearness_panels", nearness_panels(results)),
        )
    }
    return render(
        "studies.html",
        results=results,
        sweep=results["sweep"],
        agreement=agreement_table(results),
        dose=dose_table(results),
        strips=dose_strips(sets),
        copies=copies_table(results),
        detector=detector_sentences(results),
        pairs=closest_pairs(results, sets, show_real),
        show_real=show_real,
        **pictures,
    )


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
                pictures = [data_url(_png(images.images[indices[c]])) if c in indices else None for c in codes]
                rows.append({"rating": rating.capitalize(), "pictures": pictures})
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
    return data_url(_png(images.images[index]))


def _why_absent(results: Mapping[str, Any], group: str) -> str:
    """Why a table without any number has none: a line says it as well as a page of cells."""
    measures = [measure for measure in results["measures"] if measure["group"] == group]
    names = ", ".join(measure["name"] for measure in measures)
    reasons = dict.fromkeys(
        row["values"][measure["key"]]["reason"]
        for row in results["rows"]
        for measure in measures
        if row["kind"] == GENERATED
    )
    return f"Not computed: {names} ({'; '.join(str(reason) for reason in reasons)})."


def _computed(results: Mapping[str, Any], group: str) -> bool:
    """Whether a table holds any number; one without comes last."""
    keys = [measure["key"] for measure in results["measures"] if measure["group"] == group]
    return any(row["values"][key]["value"] is not None for row in results["rows"] for key in keys)


def sample_grids(sets: Sequence[ImageSet], show_real: bool) -> list[dict[str, Any]]:
    """One grid a model: a row a prompt, the prompts as varied as can be, a column a guidance scale, one image each."""
    columns = [images for images in sets if images.key.kind == GENERATED]
    columns.sort(key=lambda images: (images.key.model, images.key.guidance_scale or 0.0))
    real = [images for images in sets if images.key.kind == REAL] if show_real else []
    grids = []
    for model in dict.fromkeys(images.key.model for images in columns):
        own = [*real, *(images for images in columns if images.key.model == model)]
        rows = [
            {"prompt": prompt or "no prompt", "pictures": [_first_picture(images, prompt) for images in own]}
            for prompt in varied_prompts([record for images in own[len(real) :] for record in images.records])
        ]
        grids.append({"model": model, "headings": [_heading(images) for images in own], "rows": rows})
    return grids


def varied_prompts(records: Sequence[ImageRecord], most: int = MAX_PROMPTS) -> list[str | None]:
    """Some of the images' prompts, each the one that asks for most codes which those before it do not ask for."""
    asked: dict[str | None, set[tuple[str, int]]] = {}
    for record in records:
        asked.setdefault(record.prompt, set()).update(record.ratings.items())
    chosen: list[str | None] = []
    seen: set[tuple[str, int]] = set()
    while len(chosen) < min(most, len(asked)):
        best = max((prompt for prompt in asked if prompt not in chosen), key=lambda prompt: len(asked[prompt] - seen))
        chosen.append(best)
        seen |= asked[best]
    return chosen


def _heading(images: ImageSet) -> str:
    if images.key.kind == REAL:
        return "real"
    return "–" if images.key.guidance_scale is None else f"{images.key.guidance_scale:g}"


def _first_picture(images: ImageSet, prompt: str | None) -> str | None:
    index = next((index for index, record in enumerate(images.records) if record.prompt == prompt), None)
    return None if index is None else data_url(_png(images.images[index]))


def _png(image: Tensor) -> bytes:
    picture = Image.fromarray(image[0].numpy())
    if max(picture.size) > SAMPLE_PIXELS:
        picture.thumbnail((SAMPLE_PIXELS, SAMPLE_PIXELS))
    return png(picture)
