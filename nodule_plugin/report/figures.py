"""The metrics against the guidance scale."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nodule_plugin.data.image_set import GENERATED, REAL
from nodule_plugin.report.results import arrow

COLUMNS = 3
DPI = 120


def guidance_figure(results: Mapping[str, Any]) -> bytes | None:
    """A PNG with one small plot a measure, or None where no generated set has both a guidance scale and a number.

    Bars are 95 % intervals; the dashed line is what real images score, the dotted one what their two halves do.
    """
    shown = _shown(results)
    if not shown:
        return None
    columns, height = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(3.6 * columns, 2.9 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis, measure in zip(axes, shown):
        _plot(axis, results, measure)
    axes[0].legend(fontsize=7)
    return _png(figure)


def guidance_panels(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The same plots one by one, by the measure's name: a page can set them below each other on a narrow screen."""
    panels = {}
    for measure in _shown(results):
        figure = Figure(figsize=(3.6, 2.9), layout="constrained")
        axis = figure.subplots()
        _plot(axis, results, measure)
        axis.legend(fontsize=6)
        panels[measure["name"]] = _png(figure)
    return panels


def _shown(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = [row for row in results["rows"] if row["kind"] == GENERATED and row["guidance_scale"] is not None]
    return [m for m in results["measures"] if any(row["values"][m["key"]]["value"] is not None for row in rows)]


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    return picture.getvalue()


def _plot(axis: Axes, results: Mapping[str, Any], measure: Mapping[str, Any]) -> None:
    key = measure["key"]
    models = dict.fromkeys(row["model"] for row in results["rows"] if row["kind"] == GENERATED)
    for model in models:
        points = [
            (row["guidance_scale"], row["values"][key]["value"], row["values"][key]["standard_error"] or 0.0)
            for row in results["rows"]
            if row["model"] == model and row["guidance_scale"] is not None and row["values"][key]["value"] is not None
        ]
        if points:
            scales, values, errors = zip(*points)
            axis.errorbar(scales, values, [1.96 * error for error in errors], marker="o", capsize=3, label=model)
    for row in results["rows"]:
        value = row["values"][key]["value"]
        if value is not None and (row["kind"] == REAL or row["floor"]):
            style = "--" if row["kind"] == REAL else ":"
            axis.axhline(value, color="black", linewidth=1, linestyle=style, label=row["model"])
    axis.set_title(f"{measure['name']} {arrow(measure)}", fontsize=9)
    axis.set_xlabel("guidance scale", fontsize=8)
    axis.tick_params(labelsize=8)
