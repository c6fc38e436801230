"""The files of a downstream study: numbers, table and figure."""

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
from nodule_plugin.report.results import chain_sentences


def write_downstream(results: Mapping[str, Any], output_dir: str | Path) -> list[Path]:
    """Write ``downstream.json``, ``.md`` and ``.png``; older ones are replaced.

    Args:
        results: of :func:`nodule_plugin.downstream.study.run_downstream`.
        output_dir: made if absent.

    Raises:
        InputError: if the folder cannot be written.
    """
    contents = {
        "downstream.md": markdown(results).encode(),
        "downstream.png": figure(results),
        "downstream.json": (json.dumps(results, indent=4, ensure_ascii=False) + "\n").encode(),
    }
    return write_files(contents, Path(output_dir))


def markdown(results: Mapping[str, Any]) -> str:
    """A table of the areas under the curve, and one of the differences to real training images."""
    settings, real = results["settings"], results["arms"][0]
    counts = {finding["name"]: f"{finding['with']} / {finding['without']}" for finding in results["findings"]}
    header = ["finding", "with / without", *(f"{arm['name']} ({arm['images']:,})" for arm in results["arms"])]
    rows = [
        [name, counts.get(name, ""), *(_text(arm["auroc"][name]) for arm in results["arms"])] for name in real["auroc"]
    ]
    others = results["arms"][1:]
    headings = ["finding", *(arm["name"] for arm in others)]
    differences = [[name, *(_text(arm["difference"][name], signed=True) for arm in others)] for name in real["auroc"]]
    caution = (
        f"**{settings['seen']:,} of the test images are of patients whom the bundle's small models learnt from**: if "
        "one of these models generated the images, this is no test.\n\n"
    )
    chains = "".join(f"{sentence}\n\n" for sentence in chain_sentences(settings))
    return (
        f"Area under the ROC curve on {settings['test_images']:,} real images of {settings['test_patients']:,} "
        "patients whom the classifiers did not learn from, by what they learnt from (images). Mean of "
        f"{len(settings['seeds'])} classifiers of {settings['steps']:,} steps each; in brackets 95 % intervals over "
        f"test patients.\n\n{caution if settings['seen'] else ''}{chains}{markdown_table(header, rows)}\n"
        f"Difference to real training images:\n\n{markdown_table(headings, differences)}"
    )


def figure(results: Mapping[str, Any]) -> bytes:
    """A PNG: each finding's areas under the curve with their intervals, one colour for each choice of images."""
    arms = results["arms"]
    names = list(arms[0]["auroc"])
    picture = Figure(figsize=(6.4, 0.8 + 0.2 * len(arms) * len(names)), layout="constrained")
    axis = picture.subplots()
    for index, arm in enumerate(arms):
        shown = [(row, arm["auroc"][name]) for row, name in enumerate(names) if arm["auroc"][name] is not None]
        rows = [row + 0.18 * (index - (len(arms) - 1) / 2) for row, _ in shown]
        values = [estimate["value"] for _, estimate in shown]
        ends = np.array([estimate["ci95"] or [estimate["value"]] * 2 for _, estimate in shown]).reshape(-1, 2)
        bars = np.abs(ends.T - values)
        axis.errorbar(values, rows, xerr=bars, fmt="o", capsize=2, label=f"{arm['name']} ({arm['images']:,})")
    axis.axvline(0.5, color="black", linewidth=1, linestyle=":", label="chance")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("area under the ROC curve on real images of other patients", fontsize=9)
    axis.legend(title="learnt from (images)", fontsize=8, title_fontsize=8, loc="best")
    return figure_png(picture)


def _text(estimate: Mapping[str, Any] | None, signed: bool = False) -> str:
    if estimate is None:
        return "not measured"
    text = with_interval(estimate["value"], estimate["ci95"])
    return f"+{text}" if signed and estimate["value"] > 0 else text
