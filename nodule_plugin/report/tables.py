"""The results table, in the layout of the reference method's Table 1, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from nodule_plugin.metrics.measures import BACKBONES, BEYOND, FINDINGS, PUBLISHED, STAND_IN
from nodule_plugin.report.numbers import with_interval
from nodule_plugin.report.results import arrow

FOOTNOTES = {
    PUBLISHED: "Metrics as the literature defines them; a column is computed only with the published weights it names.",
    BACKBONES: "The same distances on the networks that fid_backbones names. Each compares sets measured alike; only "
    "those on Inception are FID and KID.",
    STAND_IN: "Stand-ins measured with this project's own small network. They compare sets measured alike; they are "
    "not FID, KID, LPIPS or CLIPScore and must not be set beside published numbers.",
    BEYOND: "Fréchet radiomics distance: on intensity and texture features in Hounsfield units, each in units of its "
    "spread among real images. Precision and density: how far generated images lie among real ones. Recall and "
    "coverage: how many real ones have a generated one near. Copies: images more like a training image than all but "
    "1 % of held-out reference images are.",
    FINDINGS: "Cohen's kappa with quadratic weights (0 chance, 1 perfect) between the rating asked for and the one "
    "that an ordinal regression, trained on the training images, reads off. For reference images: between their "
    "readers' rating and the one read off, which is what the regression can do at best. Calcification: any or none.",
}
TITLES = {
    PUBLISHED: "Published metrics",
    BACKBONES: "Distances on further networks",
    STAND_IN: "Stand-in metrics (tiny nodule encoder)",
    BEYOND: "Radiomics, fidelity, coverage, copies",
    FINDINGS: "Findings asked for and seen",
}
ITSELF = "compared with itself"


def table(results: Mapping[str, Any], group: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of one table.

    Args:
        results: the content of metrics.json.
        group: "published", "stand-in" or "beyond".
    """
    measures = [measure for measure in results["measures"] if measure["group"] == group]
    headings = ["Model", "Guidance scale", *(f"{m['name']} {arrow(m)}" for m in measures), "Images"]
    rows = [
        [_name(row), _scale(row), *(cell(row["values"][m["key"]]) for m in measures), str(row["images"])]
        for row in results["rows"]
    ]
    return headings, rows


def cell(value: Mapping[str, Any]) -> str:
    """A value with its 95 % interval, or why there is none."""
    if value["value"] is not None:
        return with_interval(value["value"], value["ci95"])
    return "–" if value["reason"] == ITSELF else f"not computed: {value['reason']}"


def groups(results: Mapping[str, Any]) -> list[str]:
    """The tables that have a column, in their order."""
    return [group for group in TITLES if any(measure["group"] == group for measure in results["measures"])]


def extractor_lines(results: Mapping[str, Any], group: str) -> list[str]:
    """For each column, the network behind it."""
    return [
        f"{measure['name']}: {measure['extractor']}" for measure in results["measures"] if measure["group"] == group
    ]


def markdown(results: Mapping[str, Any]) -> str:
    """The verdict and the tables."""
    parts = ["# Evaluation", f"**{results['notice']}**", *(f"- {sentence}" for sentence in results["verdict"])]
    for group in groups(results):
        headings, rows = table(results, group)
        lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
        lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
        parts += [f"## {TITLES[group]}", "\n".join(lines), FOOTNOTES[group]]
        parts.append("Networks: " + "; ".join(extractor_lines(results, group)) + ".")
    parts += [
        "In brackets: 95 % intervals; ±: one standard error. ↓ lower is better, ↑ higher is better.",
        results["attribution"],
    ]
    # Sentences of one list belong together; everything else is a paragraph.
    return "\n\n".join(parts).replace("\n\n- ", "\n- ").replace("**\n- ", "**\n\n- ") + "\n"


def csv_text(results: Mapping[str, Any]) -> str:
    """One line a row, four columns a measure: value, standard error, 95 % interval; empty where not computed."""
    keys = [measure["key"] for measure in results["measures"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = [name for key in keys for name in (key, f"{key}_standard_error", f"{key}_low", f"{key}_high")]
    writer.writerow(["kind", "model", "guidance_scale", "images", *headings, "convention"])
    convention = shared_convention(results["measures"])
    for row in results["rows"]:
        numbers = []
        for value in (row["values"][key] for key in keys):
            numbers += [value["value"], value["standard_error"], *(value["ci95"] or (None, None))]
        writer.writerow([row["kind"], row["model"], row["guidance_scale"], row["images"], *numbers, convention])
    return text.getvalue()


def shared_convention(measures: Sequence[Mapping[str, Any]]) -> str:
    """What the conventions of all measures have in common, which is how the images were made, in one line."""
    conventions = [measure["convention"] for measure in measures]
    shared = conventions[0] if conventions else {}
    return "; ".join(
        f"{name} {value}" for name, value in shared.items() if all(own.get(name) == value for own in conventions)
    )


def _name(row: Mapping[str, Any]) -> str:
    role = "floor: " if row["floor"] else "ceiling: " if row["ceiling"] else ""
    return role + str(row["model"])


def _scale(row: Mapping[str, Any]) -> str:
    return "–" if row["guidance_scale"] is None else f"{row['guidance_scale']:g}"
