"""The tables of what was computed, as data, Markdown and CSV; and one line on what could be computed besides."""

from __future__ import annotations

import csv
import io
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodule_plugin.data.image_set import GENERATED
from nodule_plugin.metrics.measures import BACKBONES, BEYOND, FINDINGS, PUBLISHED, STAND_IN
from nodule_plugin.report.lights import light_line
from nodule_plugin.report.numbers import markdown_table, scale_text, value_of, with_interval
from nodule_plugin.report.results import arrow

EXPLANATIONS = {
    PUBLISHED: "Metrics as the literature defines them; a column is computed only with the published weights it names.",
    BACKBONES: "The same distances on further networks. Each compares sets measured alike; only those on Inception are "
    "FID and KID.",
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
LEGEND = (
    "In brackets: 95 % intervals. Floor: the best that can be expected. Ceiling: what bad images and wrong prompts "
    "score. ↓ lower is better, ↑ higher is better, ≈ real nearer to the real images' value is better."
)
ITSELF = "compared with itself"
SETTINGS = {
    "inception_weights": ("fid", "fid_infinity", "kid"),
    "lpips_weights": ("lpips", "lpips_diversity"),
    "clip_model": ("cmmd", "clip_score"),
    "biomedclip_model": ("bioclip_score",),
    "training_datalist": ("copies", "finding_"),
}
"""Setting of evaluate.json -> the measures that it switches on: their keys, or how these begin."""
NOT_GIVEN = ("no weights given", "no training images given")


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Attributes:
        text: as printed.
        value: that the column is sorted by; None: by the text.
        note: letter of the note that says why there is no number.
    """

    text: str
    value: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of what was computed.

    Attributes:
        title: heading.
        headings: of its columns.
        rows: as many cells as headings.
        notes: letter -> why a number is missing, each reason once.
        explanation: what the numbers are.
        networks: what each column's numbers rest on.
    """

    title: str
    headings: list[str]
    rows: list[list[Cell]]
    notes: dict[str, str] = field(default_factory=dict)
    explanation: str = ""
    networks: list[str] = field(default_factory=list)


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The tables that hold a number of generated images, in their order."""
    found = (_table(results, group) for group in TITLES)
    return [table for table in found if table is not None]


def _table(results: Mapping[str, Any], group: str) -> Table | None:
    """The columns and rows of a group that hold a number."""
    measures = [measure for measure in results["measures"] if measure["group"] == group and computed(results, measure)]
    if not measures:
        return None
    rows = [row for row in results["rows"] if any(value_of(row, measure["key"]) is not None for measure in measures)]
    reasons = (row["values"][measure["key"]]["reason"] for row in rows for measure in measures)
    noted = dict.fromkeys(reason for reason in reasons if reason not in (None, ITSELF))
    letters = dict(zip(noted, string.ascii_lowercase))
    return Table(
        TITLES[group],
        ["Set", "Guidance scale", *(f"{m['name']} {arrow(m)}" for m in measures), "Images"],
        [
            [
                Cell(row_name(row)),
                Cell(scale_text(row["guidance_scale"]), row["guidance_scale"]),
                *(cell(row["values"][measure["key"]], letters) for measure in measures),
                Cell(f"{row['images']:,}", row["images"]),
            ]
            for row in rows
        ],
        {letter: reason for reason, letter in letters.items()},
        EXPLANATIONS[group].replace("real images", results["reference"]),
        _networks(measures, shared_convention(results["measures"])),
    )


def cell(value: Mapping[str, Any], letters: Mapping[str, str]) -> Cell:
    """A value with its 95 % interval, or a dash and the letter of the reason."""
    if value["value"] is None:
        return Cell("–", None, letters.get(value["reason"]))
    return Cell(with_interval(value["value"], value["ci95"]), value["value"])


def computed(results: Mapping[str, Any], measure: Mapping[str, Any]) -> bool:
    """Whether some generated set has a number of a measure."""
    return any(row["kind"] == GENERATED and value_of(row, measure["key"]) is not None for row in results["rows"])


def more_sentence(results: Mapping[str, Any]) -> str | None:
    """What was not computed: what each setting would add, why the rest has no number; None if nothing is missing."""
    by_setting: dict[str, list[str]] = {}
    by_reason: dict[str, list[str]] = {}
    for measure in results["measures"]:
        if computed(results, measure):
            continue
        reason = _reason(results, measure)
        setting = _setting(measure["key"]) if reason in NOT_GIVEN else None
        names = by_reason.setdefault(reason, []) if setting is None else by_setting.setdefault(setting, [])
        names.append(measure["name"])
    parts = [f"{', '.join(names)} with {setting}" for setting, names in by_setting.items()]
    sentences = [f"Settings that give more: {'; '.join(parts)}."] if parts else []
    if by_reason:
        rest = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
        sentences.append(f"No number of the generated images: {rest}.")
    return " ".join(sentences) or None


def _setting(key: str) -> str | None:
    """The setting of evaluate.json that switches a measure on."""
    for setting, parts in SETTINGS.items():
        if key in parts or key.startswith(tuple(part for part in parts if part.endswith("_"))):
            return setting
    return "scorer" if key.endswith("_tiny") else None


def _reason(results: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    reasons = [row["values"][measure["key"]]["reason"] for row in results["rows"] if row["kind"] == GENERATED]
    return measure["unavailable"] or (reasons[0] if reasons else "no generated images")


def shared_convention(measures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the conventions of all measures have in common: how the images were made."""
    conventions = [measure.get("convention", {}) for measure in measures]
    first = conventions[0] if conventions else {}
    return {name: value for name, value in first.items() if all(own.get(name) == value for own in conventions)}


def convention_line(convention: Mapping[str, Any]) -> str:
    """A convention in one line."""
    return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in convention.items())


def _networks(measures: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> list[str]:
    """What columns rest on and what is done to an image there, beyond what all have in common; each network once."""
    by_network: dict[str, list[Mapping[str, Any]]] = {}
    for measure in measures:
        by_network.setdefault(measure["extractor"], []).append(measure)
    lines = []
    for network, own in by_network.items():
        its_own = {name: value for name, value in own[0].get("convention", {}).items() if name not in shared}
        names = ", ".join(measure["name"] for measure in own)
        lines.append(f"{network}: {names}" + (f" ({convention_line(its_own)})" if its_own else ""))
    return lines


def markdown(results: Mapping[str, Any]) -> str:
    """Warnings, verdict, lights and tables."""
    parts = ["# Evaluation", f"**{results['notice']}**"]
    parts += [f"**Warning:** {sentence}" for sentence in results["warnings"]]
    parts += [" ".join(results["verdict"]), "\n".join(f"- {light_line(light)}" for light in results["lights"])]
    for table in tables(results):
        rows = [[_marked(one) for one in row] for row in table.rows]
        parts += [f"## {table.title}", markdown_table(table.headings, rows).rstrip(), table.explanation]
        parts += ["; ".join(f"({letter}) {reason}" for letter, reason in table.notes.items()) + "."] * bool(table.notes)
        parts.append(f"Networks: {'; '.join(table.networks)}.")
    parts += [legend(results), more_sentence(results) or "", results["attribution"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def legend(results: Mapping[str, Any]) -> str:
    """How the tables' numbers are to be read, and how the images behind them were made."""
    convention = convention_line(shared_convention(results["measures"]))
    made = f" All images: {convention}." if convention else ""
    return LEGEND.replace("real images", results["reference"]) + made


def _marked(one: Cell) -> str:
    return (one.text + (f" ({one.note})" if one.note else "")).replace("|", "\\|")


def csv_text(results: Mapping[str, Any]) -> str:
    """One line a row, four columns a measure: value, standard error, 95 % interval; empty where not computed."""
    keys = [measure["key"] for measure in results["measures"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = [name for key in keys for name in (key, f"{key}_standard_error", f"{key}_low", f"{key}_high")]
    writer.writerow(["kind", "model", "guidance_scale", "images", *headings, "convention"])
    convention = convention_line(shared_convention(results["measures"]))
    for row in results["rows"]:
        numbers = []
        for value in (row["values"][key] for key in keys):
            numbers += [value["value"], value["standard_error"], *(value["ci95"] or (None, None))]
        writer.writerow([row["kind"], row["model"], row["guidance_scale"], row["images"], *numbers, convention])
    return text.getvalue()


def row_name(row: Mapping[str, Any]) -> str:
    """A row's model, or what it is for."""
    role = "floor: " if row["floor"] else "ceiling: " if row["ceiling"] else ""
    return role + str(row["model"])
