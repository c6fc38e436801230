"""The content of ``metrics.json``: what every table, figure and page is drawn from."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL
from nodule_plugin.lidc.citation import ATTRIBUTION
from nodule_plugin.metrics.intervals import NORMAL_95
from nodule_plugin.metrics.measures import HIGHER, LOWER, Measure
from nodule_plugin.metrics.results_table import FLOOR, Row
from nodule_plugin.metrics.studies import NO_STUDIES
from nodule_plugin.report.numbers import rate_text, with_error
from nodule_plugin.report.sweep import guidance_sweep

FORMAT = "nodule-plugin evaluation"
VERSION = 2
NOTICE = "Synthetic images. For research use only; not for diagnosis."
FEW_IMAGES = 20
"""Fewer reference images than this are said to be too few in the verdict's first sentences."""
REAL_IMAGES, PHANTOMS = "real images", "phantoms"
PACKAGES = ("nodule-plugin", "torch", "monai", "torchmetrics", "torch-fidelity", "open_clip_torch", "lpips")
# Which column names the best row: the published ones first, distances that are unbiased in the number of images first.
DECIDING = ("kid", "fid", "kd_imagenet", "kd_tiny", "fd_tiny")


def build_results(
    rows: Sequence[Row],
    measures: Sequence[Measure],
    settings: Mapping[str, Any],
    phantoms: bool = False,
    seen_in_training: int = 0,
    studies: Mapping[str, Any] | None = None,
    not_held_out: int = 0,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything an evaluation found, in plain JSON types; docs/evaluation.md documents the keys.

    Args:
        rows: of the table.
        measures: its columns.
        settings: of the run.
        phantoms: the reference images are phantoms, and must not be called real.
        seen_in_training: how many reference images are of patients that the project's small models were trained on.
        studies: as :func:`nodule_plugin.metrics.studies.run_studies` gives them; None: none were run.
        not_held_out: how many are of patients of the training split that copies are looked for in.
        warnings: sentences about the images themselves, for the beginning of the verdict.
    """
    reference = PHANTOMS if phantoms else REAL_IMAGES
    results: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "notice": NOTICE,
        "attribution": ATTRIBUTION,
        "software": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "settings": dict(settings),
        "measures": [measure.describe() for measure in measures],
        "reference": reference,
        "seen_in_training": seen_in_training,
        "not_held_out": not_held_out,
        "warnings": [warning.replace(REAL_IMAGES, reference) for warning in warnings],
        "rows": [_row(row, reference) for row in rows],
        "studies": dict(studies or NO_STUDIES),
    }
    results["sweep"] = guidance_sweep(results)
    results["verdict"] = verdict(results)
    return results


def _row(row: Row, reference: str) -> dict[str, Any]:
    generated = row.key.kind == GENERATED
    return {
        "kind": row.key.kind,
        "floor": row.key == FLOOR,
        "ceiling": row.key.kind == CONTROL and row.key != FLOOR,
        "model": row.key.model if generated else row.key.model.replace(REAL_IMAGES, reference),
        "guidance_scale": row.key.guidance_scale,
        "images": row.count,
        "prompts": row.prompts,
        "values": {key: value.to_dict() for key, value in row.values.items()},
    }


def verdict(results: Mapping[str, Any]) -> list[str]:
    """What the numbers say in a few sentences: the best row, how far from real images, whether prompts matter."""
    reference = results["reference"]
    sentences = [*results.get("warnings", [])]
    if reference == PHANTOMS:
        sentences.append(
            "The reference images are phantoms (synthetic CT): the numbers show that the steps work and say "
            "nothing about real CT."
        )
    if results["seen_in_training"]:
        sentences.append(
            f"{results['seen_in_training']} of the {reference} are of patients that the bundle's small models were "
            "trained on: for these models they are no test."
        )
    if results["not_held_out"]:
        sentences.append(
            f"{results['not_held_out']} of the {reference} are of patients whose images the model was trained on: low "
            "distances prove nothing, and copies are not looked for. Choose another split or training_datalist."
        )
    few = [row["images"] for row in results["rows"] if row["kind"] == REAL and row["images"] < FEW_IMAGES]
    if few:
        sentences.append(f"There are only {few[0]} {reference}: no distance to so few can be trusted.")
    generated = [row for row in results["rows"] if row["kind"] == GENERATED]
    deciding = next((key for key in DECIDING if any(_value(row, key) is not None for row in generated)), None)
    if deciding is None:
        return [
            *sentences,
            f"No distance between {reference} and generated images could be computed; the table says why.",
            *chain_sentences(results["settings"]),
        ]
    measure = next(measure for measure in results["measures"] if measure["key"] == deciding)
    computed = [row for row in generated if _value(row, deciding) is not None]
    best = min(computed, key=lambda row: row["values"][deciding]["value"])
    sentences.append(f"Closest to the {reference} by {measure['name']}: {label(best)}, {_number(best, deciding)}.")
    if not measure["standard"]:
        sentences.append(
            f"{measure['name']} is a stand-in measured with this project's own small network. It compares sets "
            "measured alike and must not be set beside published FID or KID."
        )
    floor = next((row for row in results["rows"] if row["floor"]), None)
    if floor is not None and _value(floor, deciding) is not None:
        sentences.append(_against_floor(best, floor, deciding, f"Two halves of the {reference} have {measure['name']}"))
    sentences += [*_alignment_sentences(results, best), *_study_sentences(results, best)]
    return sentences + chain_sentences(results["settings"])


def chain_sentences(settings: Mapping[str, Any]) -> list[str]:
    """A warning where it is not recorded whether reference images are cut as those that the models learnt from.

    Args:
        settings: of the run, with "chain" of the reference images and "generated", what the sets' manifests say.
    """
    chain, generated = settings.get("chain"), settings.get("generated", ())
    unknown = [one["folder"] for one in generated if one.get("model", {}).get("chain") is None]
    if not unknown and chain is not None:
        return []
    cut = "How the reference images were cut is not known" if chain is None else f"Reference images are cut by {chain}"
    learnt = f"; how those were that the model of {', '.join(unknown)} learnt from is not recorded" if unknown else ""
    return [f"{cut}{learnt}. Part of a distance may come from a difference of the cut."]


def _against_floor(best: Mapping[str, Any], floor: Mapping[str, Any], key: str, halves: str) -> str:
    above = best["values"][key]["value"] - floor["values"][key]["value"]
    errors = [row["values"][key]["standard_error"] for row in (best, floor)]
    stated = f"{halves} {_number(floor, key)}"
    if None in errors:
        return f"{stated}; the images are too few to say whether the difference is one."
    error = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    if above > NORMAL_95 * error:
        return f"{stated}: the generated images differ from these by more than chance."
    return f"{stated}: at this number of images the difference is within chance."


def _alignment_sentences(results: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    sentences = []
    for measure in results["measures"]:
        value = row["values"][measure["key"]]
        above, error = value.get("above_shuffled"), value.get("above_shuffled_error")
        if above is None or error is None:
            continue
        follows = (
            "The images follow their prompts"
            if above > NORMAL_95 * error
            else "That the images follow their prompts is not shown"
        )
        sentences.append(
            f"{follows}: {measure['name']} is {with_error(value['value'], value['standard_error'])}, "
            f"{with_error(above, error)} above that with shuffled prompts."
        )
    return sentences


def _study_sentences(results: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    sentences = []
    memorization, curves = results["studies"]["memorization"], results["studies"]["dose_response"]
    if memorization is not None:
        row = next(
            row
            for row in memorization["sets"]
            if (row["model"], row["guidance_scale"]) == (best["model"], best["guidance_scale"])
        )
        detector = memorization["detector"]
        sentences.append(
            f"Copies of training images there: {rate_text(row['copies'])}; the detector takes "
            f"{rate_text(detector['false_alarms'])} of held-out {results['reference']} for copies and misses "
            f"{rate_text(detector['misses'])} of planted ones."
        )
    if curves:
        moved = [curve for curve in curves if curve["p_value"] < 0.05 and curve["change"] > 0]
        rising = sorted({curve["rating"] for curve in moved if curve["monotone"]})
        partly = sorted({curve["rating"] for curve in moved} - set(rising))
        ignored = sorted({curve["rating"] for curve in curves} - {curve["rating"] for curve in moved})
        sentences.append(
            "When one rating moves and all else stays, what is read off the pictures rises throughout for "
            f"{', '.join(rising) or 'no rating'}; with reversals for {', '.join(partly) or 'none'}; and is not shown "
            f"to rise for {', '.join(ignored) or 'none'}."
        )
    return sentences


def label(row: Mapping[str, Any]) -> str:
    """A row's name in words."""
    scale = row["guidance_scale"]
    return row["model"] if scale is None else f"{row['model']} at guidance scale {scale:g}"


def arrow(measure: Mapping[str, Any]) -> str:
    """Which way is better: an arrow down, up, or both ways for "near the real images' value"."""
    return {LOWER: "↓", HIGHER: "↑"}.get(measure["better"], "≈ real")


def _value(row: Mapping[str, Any], key: str) -> float | None:
    return row["values"].get(key, {}).get("value")


def _number(row: Mapping[str, Any], key: str) -> str:
    return with_error(row["values"][key]["value"], row["values"][key]["standard_error"])
