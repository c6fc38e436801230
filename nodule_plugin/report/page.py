"""One self-contained HTML page: verdict, tables, figure, samples, settings. It loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from nodule_plugin.data.image_set import GENERATED, REAL, ImageSet
from nodule_plugin.report.figures import guidance_panels
from nodule_plugin.report.html import data_url, png, render
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
            "rows": table(results, group)[1],
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
        settings=json.dumps(results["settings"], indent=2, ensure_ascii=False, default=str),
    )


def _computed(results: Mapping[str, Any], group: str) -> bool:
    """Whether a table holds any number; one without comes last."""
    return any(m["group"] == group and m["unavailable"] is None for m in results["measures"])


def sample_grids(sets: Sequence[ImageSet], show_real: bool) -> list[dict[str, Any]]:
    """One grid a model: a row a prompt, a column a guidance scale, the first image of each."""
    columns = [images for images in sets if images.key.kind == GENERATED]
    columns.sort(key=lambda images: (images.key.model, images.key.guidance_scale or 0.0))
    real = [images for images in sets if images.key.kind == REAL] if show_real else []
    grids = []
    for model in dict.fromkeys(images.key.model for images in columns):
        own = [*real, *(images for images in columns if images.key.model == model)]
        prompts = list(dict.fromkeys(record.prompt for images in own[len(real) :] for record in images.records))
        rows = [
            {"prompt": prompt or "no prompt", "pictures": [_first_picture(images, prompt) for images in own]}
            for prompt in prompts[:MAX_PROMPTS]
        ]
        grids.append({"model": model, "headings": [_heading(images) for images in own], "rows": rows})
    return grids


def _heading(images: ImageSet) -> str:
    if images.key.kind == REAL:
        return "real"
    return "–" if images.key.guidance_scale is None else f"{images.key.guidance_scale:g}"


def _first_picture(images: ImageSet, prompt: str | None) -> str | None:
    for record, image in zip(images.records, images.images):
        if record.prompt == prompt:
            return data_url(_png(image))
    return None


def _png(image: Tensor) -> bytes:
    picture = Image.fromarray(image[0].numpy())
    if max(picture.size) > SAMPLE_PIXELS:
        picture.thumbnail((SAMPLE_PIXELS, SAMPLE_PIXELS))
    return png(picture)
