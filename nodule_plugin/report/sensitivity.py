"""The files of a trial of the measures: numbers, table and figure of what each can see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nodule_plugin.files import write_files
from nodule_plugin.report.html import figure_png
from nodule_plugin.report.numbers import markdown_table, with_interval

BLIND = "–"


def write_sensitivity(results: Mapping[str, Any], output_dir: str | Path) -> list[Path]:
    """Write ``sensitivity.json``, ``.md`` and ``.png``; older ones are replaced.

    Args:
        results: of :func:`nodule_plugin.metrics.sensitivity.run_sensitivity`.
        output_dir: made if absent.

    Raises:
        InputError: if the folder cannot be written.
    """
    contents = {
        "sensitivity.md": markdown(results).encode(),
        "sensitivity.png": figure(results),
        "sensitivity.json": _lines(results).encode(),
    }
    return write_files(contents, Path(output_dir))


def _lines(results: Mapping[str, Any]) -> str:
    """JSON with a line for each fault and each measure."""
    parts = []
    for name, value in results.items():
        listed = isinstance(value, list)
        text = ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in (value if listed else [value]))
        parts.append(f"{json.dumps(name)}: " + (f"[\n  {text}\n]" if listed else text))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def markdown(results: Mapping[str, Any]) -> str:
    """A page: the faults with their steps, the first step of each that each measure sees, and how that was found."""
    faults, convention = results["faults"], results["convention"]
    tried = [
        [fault["name"], fault["question"], ", ".join(f"{step:g}" for step in fault["steps"]), fault["unit"]]
        for fault in faults
    ]
    seen = [
        [
            measure["name"],
            with_interval(measure["floor"]["value"], measure["floor"]["ci95"]),
            *(_cell(measure["faults"][fault["key"]]) for fault in faults),
        ]
        for measure in results["measures"]
    ]
    headings = ["measure", "floor", *(fault["name"] for fault in faults)]
    images, patients, halvings = (convention[name] for name in ("images", "patients", "halvings"))
    return (
        "# What each measure can see\n\n"
        f"Made by `nodule sensitivity`. {results['data']}: {images} images of {patients} patients, {halvings} "
        "halvings.\n\n"
        "First step of each fault that a measure tells from its floor, clean real images against those of other "
        f"patients ({BLIND}: none of the steps; empty: not measured).\n\n"
        + markdown_table(headings, seen)
        + "\n"
        + markdown_table(["fault", "question", "steps", "unit"], tried)
        + "\n"
        + "".join(f"- {name}: {value}\n" for name, value in convention.items())
    )


def _cell(found: Mapping[str, Any]) -> str:
    if found["values"][0] is None:
        return ""
    return BLIND if found["first_step_seen"] is None else f"{found['first_step_seen']:g}"


def figure(results: Mapping[str, Any]) -> bytes:
    """A PNG: a row for each measure, a column for each fault; colour Kendall's tau, text the first step seen."""
    faults, measures = results["faults"], results["measures"]
    found = [[measure["faults"][fault["key"]] for fault in faults] for measure in measures]
    taus = np.array([[np.nan if one["tau"] is None else one["tau"] for one in row] for row in found], dtype=float)
    picture = Figure(figsize=(3.2 + 0.52 * len(faults), 1.9 + 0.27 * len(measures)), layout="constrained")
    axis = picture.subplots()
    shown = axis.imshow(taus, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for row, cells in enumerate(found):
        for column, one in enumerate(cells):
            light = abs(np.nan_to_num(taus[row, column])) > 0.7
            axis.text(
                column, row, _cell(one), ha="center", va="center", fontsize=7, color="white" if light else "black"
            )
    axis.set_xticks(range(len(faults)), [fault["name"] for fault in faults], rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(measures)), [measure["name"] for measure in measures], fontsize=8)
    picture.colorbar(shown, ax=axis, label="Kendall's tau: 1 = each step worse than the last", shrink=0.6)
    return figure_png(picture)
