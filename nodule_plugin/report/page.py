"""One self-contained HTML page: verdict, pictures, curves, tables, settings. It loads nothing from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nodule_plugin.data.image_set import ImageSet
from nodule_plugin.report.figures import (
    dose_panels,
    grey_value_panels,
    nearness_panels,
    noise_power_panels,
    question_panels,
    sweep_panels,
)
from nodule_plugin.report.html import data_url, render
from nodule_plugin.report.lights import SHAPES, WORDS, light_details
from nodule_plugin.report.pictures import closest_pairs, dose_strips, sample_grids
from nodule_plugin.report.studies import agreement_table, copies_table, detector_sentences, dose_table
from nodule_plugin.report.tables import csv_text, legend, more_sentence, tables

CAPTIONS = {
    "findings": "Asked for and read: one rating moves, all else and the seed stay; the dashed line is the mean read "
    "off {} with that rating. The regression reads extremes towards the middle, so this is what to hope for.",
    "copies": "Likeness: the fraction of images whose nearest training image is less like them. A curve to the right "
    "of that of held-out {} lies nearer to the training images.",
    "noise": "Histogram and spectra: means over images with 95 % intervals, {} dashed. Low frequencies are anatomy, "
    "high ones noise and the sharpness of edges.",
}
"""What the panels of a question show besides curves over the guidance scale."""


def render_page(results: Mapping[str, Any], sets: Sequence[ImageSet], show_real: bool = False) -> str:
    """The page as HTML text.

    Args:
        results: the content of metrics.json.
        sets: the images, for the pictures.
        show_real: show real images beside generated ones of the same findings.
    """
    return render(
        "page.html",
        results=results,
        shapes=SHAPES,
        words=WORDS,
        details={light["question"]: light_details(light) for light in results["lights"]},
        samples=sample_grids(sets, show_real),
        pairs=closest_pairs(results, sets, show_real),
        strips=dose_strips(sets),
        show_real=show_real,
        figures=question_figures(results),
        sweep=results["sweep"],
        sweep_panels=_urls(sweep_panels(results)),
        tables=tables(results),
        legend=legend(results),
        more=more_sentence(results),
        csv="data:text/csv;base64," + base64.b64encode(csv_text(results).encode()).decode("ascii"),
        agreement=agreement_table(results),
        dose=dose_table(results),
        copies=copies_table(results),
        detector=detector_sentences(results),
        settings=json.dumps(results["settings"], indent=2, ensure_ascii=False, default=str),
    )


def question_figures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each question that anything can be drawn of: its name, its panels by their titles and a caption."""
    beside = {
        "findings": {f"{rating}: asked for and read": panel for rating, panel in dose_panels(results).items()},
        "copies": nearness_panels(results),
        "noise": grey_value_panels(results) | noise_power_panels(results),
    }
    curves = question_panels(results)
    figures = []
    for light in results["lights"]:
        own, more = curves.get(light["question"], {}), beside.get(light["question"], {})
        if not own | more:
            continue
        caption = CAPTIONS[light["question"]].format(results["reference"]) if more else None
        figures.append({"name": light["name"], "asks": light["asks"], "panels": _urls(own | more), "caption": caption})
    return figures


def _urls(panels: Mapping[str, bytes]) -> dict[str, str]:
    return {title: data_url(panel) for title, panel in panels.items()}
