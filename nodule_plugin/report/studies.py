"""The studies beside the table as tables of text: agreement of findings, dose response, copies, attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodule_plugin.data.image_set import GENERATED, REAL
from nodule_plugin.metrics.intervals import normal_interval
from nodule_plugin.metrics.measures import FINDINGS
from nodule_plugin.report.numbers import percent, rate_text, scale_text, set_title, with_interval

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def agreement_table(results: Mapping[str, Any]) -> Table | None:
    """Exact agreement, within one, and kappa: the readers among themselves, reference images, each generated row."""
    readers = results["studies"]["readers"]
    rows = [row for row in results["rows"] if row["kind"] in (REAL, GENERATED)]
    measures = [
        measure
        for measure in results["measures"]
        if measure["group"] == FINDINGS and any(row["values"][measure["key"]]["value"] is not None for row in rows)
    ]
    if not measures:
        return None
    headings = ["Finding", "Readers of LIDC-IDRI", *(set_title(row["model"], row["guidance_scale"]) for row in rows)]
    lines = []
    for measure in measures:
        own = readers.get(measure["key"].removeprefix("finding_"))
        cells = [_agreement(row["values"][measure["key"]]) for row in rows]
        lines.append([measure["name"], "–" if own is None else _of_readers(own), *cells])
    return headings, lines


def _of_readers(own: Mapping[str, Any]) -> str:
    return f"{own['exact']:.2f} /\n{own['within_one']:.2f} / {own['kappa']:.2f}"


def _agreement(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "–"
    low, high = value["exact_ci95"]
    return f"{value['exact']:.2f} [{low:.2f}, {high:.2f}] /\n{value['within_one']:.2f} / {value['value']:.2f}"


def dose_table(results: Mapping[str, Any]) -> Table | None:
    """Trend and change of each dose-response curve."""
    curves = results["studies"]["dose_response"]
    if not curves:
        return None
    headings = ["Finding", "Model", "Guidance scale", "Trend (Kendall)", "p, no trend"]
    headings += ["Change read", f"Same, {results['reference']}", "Seeds"]
    lines = [
        [
            curve["rating"].capitalize(),
            curve["model"],
            scale_text(curve["guidance_scale"]),
            with_interval(curve["trend"], curve["trend_ci95"]),
            "< 0.001" if curve["p_value"] < 0.001 else f"{curve['p_value']:.3f}",
            with_interval(curve["change"], curve["change_ci95"]),
            "–" if curve["real_change"] is None else f"{curve['real_change']:.2f}",
            str(curve["chains"]),
        ]
        for curve in curves
    ]
    return headings, lines


def copies_table(results: Mapping[str, Any]) -> Table | None:
    """Copies and nearness of each generated row."""
    memorization = results["studies"]["memorization"]
    if memorization is None:
        return None
    likenesses = list(memorization["detector"]["missed_by"])
    headings = ["Model", "Guidance scale", "Copies", *(f"Nearer than held-out ({name})" for name in likenesses)]
    lines = [
        [
            row["model"],
            scale_text(row["guidance_scale"]),
            rate_text(row["copies"]),
            *(_chance(row["nearness"][name]) for name in likenesses),
        ]
        for row in memorization["sets"]
    ]
    return headings, lines


def _chance(nearness: Mapping[str, Any]) -> str:
    return with_interval(nearness["chance"], normal_interval(nearness["chance"], nearness["error"]))


def detector_sentences(results: Mapping[str, Any]) -> list[str]:
    """How good the detector of copies is, and what the attacks found."""
    memorization = results["studies"]["memorization"]
    if memorization is None:
        return []
    detector = memorization["detector"]
    limits = " and ".join(f"{name} above {limit:.3f}" for name, limit in detector["thresholds"].items())
    sentences = [
        f"A copy is an image whose likeness to one of {memorization['training_images']} training images, in any of "
        f"eight orientations, passes a threshold: {limits}. The thresholds let "
        f"{percent(detector['accepted_false_alarms'], 0)} of {memorization['held_out_images']} held-out "
        f"{results['reference']} pass.",
        f"False alarms on held-out images, the thresholds set by all others: "
        f"{rate_text(detector['false_alarms'])}. Planted copies (turned, shifted, blurred, noisy, of other "
        f"contrast) that it misses: {rate_text(detector['misses'])}; "
        + ", ".join(f"{name} alone {percent(missed['share'])}" for name, missed in detector["missed_by"].items())
        + ".",
    ]
    for attack in memorization["attacks"]:
        error = attack["own_rank_error"]
        ends = None if error is None else normal_interval(attack["own_rank"], error)
        chance = percent(attack["chance_nearest"])
        sentences.append(
            f"Attack on {attack['model']} through {attack['prompts']} prompts that belong to one training nodule each: "
            f"copies {rate_text(attack['copies'])}; the prompt's own nodule is the nearest training image "
            f"for {rate_text(attack['own_nearest'])}, by chance {chance}; it is nearer than a fraction of "
            f"{with_interval(attack['own_rank'], ends)} of the training images, by chance 0.5."
        )
    return sentences
