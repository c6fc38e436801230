"""The figures: measures against the guidance scale, the sweep, dose response, grey values, nearness to training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nodule_plugin.data.image_set import GENERATED, REAL
from nodule_plugin.report.html import figure_png
from nodule_plugin.report.numbers import set_title
from nodule_plugin.report.results import arrow

COLUMNS = 3
PANELS = 3
"""Measures of one question that are drawn."""


def guidance_figure(results: Mapping[str, Any]) -> bytes | None:
    """A PNG with one small plot a measure, or None where no generated set has both a guidance scale and a number.

    Bars and bands are 95 % intervals; dashed is what real images score, dotted what their two halves do, dash-dotted
    what another resampling of the same real images does.
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
    return figure_png(figure)


def question_panels(results: Mapping[str, Any]) -> dict[str, dict[str, bytes]]:
    """For each question the curves of up to :data:`PANELS` measures about it, those its light rests on first.

    Returns:
        Key of the question -> name of the measure -> PNG: a page can set them below each other on a narrow screen.
    """
    shown = {measure["key"]: measure for measure in _shown(results)}
    panels: dict[str, dict[str, bytes]] = {}
    for light in results["lights"]:
        for key in [key for key in light["candidates"] if key in shown][:PANELS]:
            axis = _new_axis((3.9, 3.0))
            _plot(axis, results, shown[key])
            panels.setdefault(light["question"], {})[shown[key]["name"]] = _panel(axis)
    return panels


def sweep_panels(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Fidelity against alignment, diversity and both, one point a guidance scale, the Pareto set ringed."""
    sweep = results["sweep"]
    if sweep is None:
        return {}
    names = {measure["key"]: f"{measure['name']} {arrow(measure)}" for measure in results["measures"]}
    panels = {}
    for across, up in (("alignment", "fidelity"), ("diversity", "fidelity"), ("diversity", "alignment")):
        axis = _new_axis((3.9, 3.2), names[sweep[across]], names[sweep[up]])
        for model in dict.fromkeys(point["model"] for point in sweep["points"]):
            points = [point for point in sweep["points"] if point["model"] == model]
            xs, ys = ([point[aspect]["value"] for point in points] for aspect in (across, up))
            bars = [_bars(values, [p[a]["ci95"] for p in points]) for values, a in ((xs, across), (ys, up))]
            axis.errorbar(xs, ys, xerr=bars[0], yerr=bars[1], marker="o", capsize=2, linewidth=1, label=model)
            for point, x, y in zip(points, xs, ys):
                axis.annotate(f"{point['guidance_scale']:g}", (x, y), (4, 4), textcoords="offset points", fontsize=7)
        best = [point for point in sweep["points"] if point["pareto"]]
        axis.scatter(
            [point[across]["value"] for point in best],
            [point[up]["value"] for point in best],
            s=110,
            facecolors="none",
            edgecolors="black",
            zorder=3,
            label="Pareto set",
        )
        for row in results["rows"]:
            x, y = (row["values"][sweep[aspect]]["value"] for aspect in (across, up))
            if row["kind"] == REAL and x is not None:
                axis.axvline(x, color="black", linewidth=1, linestyle="--", label=row["model"])
            if row["floor"] and y is not None and up == "fidelity":
                axis.axhline(y, color="black", linewidth=1, linestyle=":", label=row["model"])
        _compress(axis, [point[up]["value"] for point in sweep["points"]])
        panels[f"{up.capitalize()} against {across}"] = _panel(axis)
    return panels


def dose_panels(results: Mapping[str, Any]) -> dict[str, bytes]:
    """What is read off the pictures against what was asked for, one plot a finding."""
    curves = results["studies"]["dose_response"]
    panels = {}
    for rating in dict.fromkeys(curve["rating"] for curve in curves):
        axis = _new_axis((3.6, 2.9), "asked for", "read", rating.capitalize())
        own = [curve for curve in curves if curve["rating"] == rating]
        for curve in own:
            bars = _bars(curve["read"], curve["ci95"])
            axis.errorbar(
                curve["codes"],
                curve["read"],
                bars,
                marker="o",
                capsize=3,
                label=set_title(curve["model"], curve["guidance_scale"]),
            )
        real = [(code, value) for code, value in zip(own[0]["codes"], own[0]["real"]) if value is not None]
        axis.plot(*zip(*real), color="black", linewidth=1, linestyle="--", marker=".", label=results["reference"])
        axis.set_xticks(own[0]["codes"])
        panels[rating.capitalize()] = _panel(axis)
    return panels


def nearness_panels(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The distribution of likeness to the nearest training image, one plot a likeness."""
    memorization = results["studies"]["memorization"]
    panels = {}
    for name in memorization["detector"]["missed_by"] if memorization else ():
        axis = _new_axis((3.9, 3.0), f"likeness to the nearest training image ({name})", "fraction of images below")
        for row in memorization["sets"]:
            quantiles = row["nearness"][name]["quantiles"]
            axis.plot(
                list(quantiles.values()),
                [float(fraction) for fraction in quantiles],
                linewidth=1,
                label=set_title(row["model"], row["guidance_scale"]),
            )
        usual = memorization["sets"][0]["nearness"][name]["held_out_quantiles"]
        fractions = [float(fraction) for fraction in usual]
        axis.plot(
            list(usual.values()), fractions, color="black", linestyle="--", label=f"held-out {results['reference']}"
        )
        if name in memorization["detector"]["thresholds"]:
            limit = memorization["detector"]["thresholds"][name]
            axis.axvline(limit, color="black", linewidth=1, linestyle=":", label="threshold")
        panels[f"Likeness by {name}"] = _panel(axis)
    return panels


def grey_value_panels(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Histograms of real and generated images; none where they were not measured."""
    curves = results["studies"]["grey_values"]
    if curves is None:
        return {}
    axis = _new_axis((4.6, 3.2), "HU", "fraction of pixels", "Histogram")
    for own in curves["sets"]:
        style, colour = ("--", "black") if own["kind"] == REAL else ("-", None)
        label = _set_label(own, results["reference"])
        (line,) = axis.plot(curves["hu"], own["histogram"], style, color=colour, linewidth=1, label=label)
        low, high = np.array(own["histogram_ci95"]).T
        axis.fill_between(curves["hu"], low, high, alpha=0.15, color=line.get_color())
    axis.set_yscale("log")
    return {"Histogram": _panel(axis)}


def noise_power_panels(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Noise power against spatial frequency, and its ratio to the real images'; none where it was not measured."""
    study = results["studies"].get("noise_power")
    frequencies = study and (study.get("frequency") or study["frequency_per_mm"])
    if not frequencies:
        return {}
    across = study.get("frequency_unit", "cycles / mm")
    power = _new_axis((4.6, 3.2), across, study["unit"], "Noise power")
    ratio = _new_axis((4.6, 3.2), across, "dB", f"Noise power over that of {results['reference']}")
    for axis, key, sets in ((power, "power", study["sets"]), (ratio, "value", study["ratio_db"])):
        for own in sets:
            real = own.get("kind") == REAL
            style: dict[str, Any] = {"color": "black", "linestyle": "--"} if real else {}
            title = _set_label(own, results["reference"])
            (line,) = axis.plot(frequencies, own[key], linewidth=1, label=title, **style)
            axis.fill_between(frequencies, *np.array(own["ci95"]).T, alpha=0.15, color=line.get_color())
    power.set_yscale("log")
    ratio.axhline(0.0, color="black", linewidth=1, linestyle="--", label=results["reference"])
    return {"Noise power": _panel(power), "Noise power against frequency, in dB": _panel(ratio)}


def _set_label(own: Mapping[str, Any], reference: str) -> str:
    return reference if own.get("kind") == REAL else set_title(own["model"], own["guidance_scale"])


def _new_axis(inches: tuple[float, float], across: str = "", up: str = "", title: str = "") -> Axes:
    """The axis of a small plot of its own, with the same margins as the others beside it."""
    (width, height), left = inches, 0.72 if up else 0.58
    axis = Figure(figsize=inches).add_axes((left / width, 0.45 / height, 1 - (left + 0.12) / width, 1 - 0.75 / height))
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)
    axis.tick_params(labelsize=8)
    return axis


def _panel(axis: Axes) -> bytes:
    """The finished plot as a PNG, with its legend."""
    axis.legend(fontsize=6, framealpha=0.6)
    assert isinstance(axis.figure, Figure)
    return figure_png(axis.figure)


def _bars(values: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> list[list[float]]:
    """Lengths below and above each value; none where there is no interval."""
    ends = [interval or (value, value) for value, interval in zip(values, intervals)]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends)]
    return [below, [max(0.0, high - value) for value, (_, high) in zip(values, ends)]]


def _shown(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = [row for row in results["rows"] if row["kind"] == GENERATED and row["guidance_scale"] is not None]
    return [m for m in results["measures"] if any(row["values"][m["key"]]["value"] is not None for row in rows)]


def _plot(axis: Axes, results: Mapping[str, Any], measure: Mapping[str, Any]) -> None:
    key = measure["key"]
    models = dict.fromkeys(row["model"] for row in results["rows"] if row["kind"] == GENERATED)
    heights: list[float] = []
    for model in models:
        points = [
            (row["guidance_scale"], row["values"][key]["value"], row["values"][key]["ci95"])
            for row in results["rows"]
            if row["model"] == model and row["guidance_scale"] is not None and row["values"][key]["value"] is not None
        ]
        if points:
            scales, values, intervals = zip(*points)
            axis.errorbar(scales, values, _bars(values, intervals), marker="o", capsize=3, label=model)
            heights += values
    for row in results["rows"]:
        value = row["values"][key]
        style = "--" if row["kind"] == REAL else ":" if row["floor"] else "-." if row["control"] else None
        if value["value"] is not None and style is not None:
            colour = "tab:brown" if row["control"] else "black"
            axis.axhline(value["value"], color=colour, linewidth=1, linestyle=style, label=row["model"])
            if value["ci95"] is not None:
                axis.axhspan(*value["ci95"], color=colour, alpha=0.12, linewidth=0)
    axis.set_title(f"{measure['name']} {arrow(measure)}", fontsize=9)
    axis.set_xlabel("guidance scale", fontsize=8)
    _spread_out(axis, {row["guidance_scale"] for row in results["rows"] if row["guidance_scale"] is not None})
    _compress(axis, heights)
    axis.tick_params(labelsize=8)


def _spread_out(axis: Axes, scales: Collection[float]) -> None:
    """A logarithmic axis where the guidance scales span more than a decade, or the low ones would lie on one spot."""
    if min(scales) > 0 and max(scales) > 10 * min(scales):
        axis.set_xscale("log")
        axis.set_xticks(sorted(scales), [f"{scale:g}" for scale in sorted(scales)])
        axis.minorticks_off()


def _compress(axis: Axes, values: Collection[float]) -> None:
    """A logarithmic value axis, linear about 0, where the largest of the values would press all others together."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 30 * min(positive):
        linear = 10 ** math.floor(math.log10(min(positive)))
        axis.set_yscale("symlog", linthresh=linear)
        axis.set_ylim(bottom=min(-linear, 2 * min(values)))
