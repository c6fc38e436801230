"""The figures of a study's report, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nodule_plugin.reader_study.questions import CODES, ITEMS, LABELS, ORIGIN
from nodule_plugin.reader_study.seal import REAL_ARM
from nodule_plugin.report.html import figure_png

GREYS = ("#08306b", "#2f79b5", "#9ecae1", "#e3c48e", "#b8860b")
"""Of the codes 1 to 5: apart in lightness as well as in hue."""


def distribution_figure(results: Mapping[str, Any]) -> bytes:
    """For each item a panel: how often each arm got each score."""
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    arms = list(dict.fromkeys(line["arm"] for line in results["distributions"]))
    for axis, item in zip(axes, ITEMS):
        for row, arm in enumerate(arms):
            counts = next(
                line["counts"] for line in results["distributions"] if (line["item"], line["arm"]) == (item, arm)
            )
            left, total = 0.0, max(1, sum(counts))
            for code, count, colour in zip(CODES, counts, GREYS):
                axis.barh(row, count / total, left=left, color=colour, edgecolor="white", label=f"{code}")
                left += count / total
        names = [results["reference"] if arm == REAL_ARM else arm for arm in arms]
        axis.set_yticks(range(len(arms)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"], fontsize=8)
        axis.set_title(f"{item.capitalize()}\n1 {LABELS[item][1]}, 5 {LABELS[item][5]}", fontsize=7.5)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles[: len(CODES)], labels[: len(CODES)], title="score", loc="center", ncols=5, fontsize=8)
    axes[-1].set_axis_off()
    return figure_png(figure)


def difference_figure(results: Mapping[str, Any], margin: float, level: float) -> bytes:
    """Every comparison's difference with its interval, against the margin of equivalence."""
    models = list(dict.fromkeys(line["model"] for line in results["comparisons"]))
    figure = Figure(figsize=(7.5, 0.6 + 0.32 * len(ITEMS) * len(models)), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-margin, margin, color="#e6eef6")
    axis.axvline(0, color="black", linewidth=0.8)
    names = []
    for row, line in enumerate(results["comparisons"]):
        names.append(f"{line['item'].capitalize()}: {line['model']}")
        if line["difference"] is None:
            axis.text(0, row, line["reason"], fontsize=7, ha="center", va="center")
            continue
        colour = f"C{models.index(line['model'])}"
        axis.plot([line["low"], line["high"]], [row, row], color=colour, linewidth=1.6)
        axis.plot(line["difference"], row, marker="o" if line["equivalent"] else "s", color=colour, markersize=5)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(
        f"mean score, generated minus {results['reference']} (interval of {100 * level:.0f} %; shaded: margin)",
        fontsize=8,
    )
    return figure_png(figure)


def curve_figure(results: Mapping[str, Any]) -> bytes:
    """Each reader's receiver operating characteristic curve, a panel a model."""
    models = list(dict.fromkeys(line["model"] for line in results["curves"])) or ["no curve"]
    figure = Figure(figsize=(3.7 * len(models), 3.9), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False).ravel()
    for axis, model in zip(axes, models):
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        for number, line in enumerate(line for line in results["curves"] if line["model"] == model):
            points = list(zip(*line["points"]))
            axis.plot(points[0], points[1], marker=".", linewidth=1.3, color=f"C{number}", label=line["reader"])
        area = next((line for line in results["recognition"] if line["model"] == model), None)
        told = "" if area is None or area["auc"] is None else f"\nmean area {area['auc']:.2f}"
        axis.set_title(f"{model}{told}", fontsize=9)
        axis.set_xlabel(f"{results['reference']} images called generated", fontsize=8)
        axis.set_ylabel("generated images called generated", fontsize=8)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=8)
        if model != "no curve":
            axis.legend(fontsize=7, loc="lower right")
    return figure_png(figure)


def agreement_figure(results: Mapping[str, Any]) -> bytes:
    """Krippendorff's alpha between readers, question by question, with its interval."""
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="black", linewidth=0.8)
    for row, line in enumerate(results["agreement"]):
        if line["alpha"] is None:
            axis.text(0.5, row, line["reason"], fontsize=7, ha="center", va="center")
            continue
        if line["alpha_low"] is not None:
            axis.plot([line["alpha_low"], line["alpha_high"]], [row, row], color="C0", linewidth=1.6)
        axis.plot(line["alpha"], row, marker="o", color="C0", markersize=5)
    _name_questions(axis, [line["question"] for line in results["agreement"]])
    axis.set_xlim(min(-0.2, axis.get_xlim()[0]), 1)
    axis.set_xlabel("Krippendorff's alpha between readers (0: chance, 1: perfect)", fontsize=8)
    return figure_png(figure)


def _name_questions(axis: Axes, questions: list[str]) -> None:
    names = ["Real or generated" if question == ORIGIN else question.capitalize() for question in questions]
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
