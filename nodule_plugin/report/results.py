"""The content of ``metrics.json``: what every table, figure and page is drawn from."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nodule_plugin.data.generated import NOTICE
from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL
from nodule_plugin.lidc.citation import ATTRIBUTION
from nodule_plugin.metrics.measures import HIGHER, LOWER, Measure
from nodule_plugin.metrics.results_table import FLOOR, Row
from nodule_plugin.metrics.sensitivity import load_sensitivity
from nodule_plugin.metrics.studies import NO_STUDIES
from nodule_plugin.report.lights import AMBER, GREEN, GREY, RED, WORDS, floor_of, in_sentence, judge, privacy_light
from nodule_plugin.report.numbers import value_of, with_interval
from nodule_plugin.report.sweep import guidance_sweep

FORMAT = "nodule-plugin evaluation"
VERSION = 3
FEW_IMAGES = 20
"""Fewer reference images than this are warned of as too few."""
REAL_IMAGES, PHANTOMS = "real images", "phantoms"
PACKAGES = ("nodule-plugin", "torch", "monai", "torchmetrics", "torch-fidelity", "open_clip_torch", "lpips")
OTHER_KERNEL = "other kernel"
"""The control that shows what another resampling of the same real images moves; neither floor nor ceiling."""


def build_results(
    rows: Sequence[Row],
    measures: Sequence[Measure],
    settings: Mapping[str, Any],
    phantoms: bool = False,
    seen_in_training: int = 0,
    studies: Mapping[str, Any] | None = None,
    not_held_out: int = 0,
    warnings: Sequence[str] = (),
    sensitivity: Mapping[str, Any] | None = None,
    privacy: Mapping[str, Any] | None = None,
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
        warnings: sentences about the images themselves.
        sensitivity: what each measure can see; None: as measured on the crops, see
            :func:`nodule_plugin.metrics.sensitivity.load_sensitivity`.
        privacy: an audit of the model, see :func:`nodule_plugin.metrics.privacy.read_audit`; None: there was none.
    """
    reference = PHANTOMS if phantoms else REAL_IMAGES
    results: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "notice": NOTICE,
        "attribution": ATTRIBUTION,
        "software": {"python": platform.python_version(), **_versions(PACKAGES)},
        "settings": dict(settings),
        "measures": [measure.describe() for measure in measures],
        "reference": reference,
        "seen_in_training": seen_in_training,
        "not_held_out": not_held_out,
        "rows": [_row(row, reference) for row in rows],
        "studies": dict(studies or NO_STUDIES),
    }
    results["sweep"] = guidance_sweep(results)
    results["warnings"] = warning_sentences(results, warnings)
    results["best"], results["lights"] = judge(results, sensitivity or load_sensitivity())
    if privacy is not None:
        results["lights"].append(privacy_light(privacy))
    results["verdict"] = verdict(results)
    return results


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed: an evaluation without LPIPS needs no lpips."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _row(row: Row, reference: str) -> dict[str, Any]:
    generated = row.key.kind == GENERATED
    other_kernel = row.key.kind == CONTROL and row.key.model == f"{REAL_IMAGES}, {OTHER_KERNEL}"
    return {
        "kind": row.key.kind,
        "control": OTHER_KERNEL if other_kernel else None,
        "floor": row.key == FLOOR,
        "ceiling": row.key.kind == CONTROL and row.key != FLOOR and not other_kernel,
        "model": row.key.model if generated else row.key.model.replace(REAL_IMAGES, reference),
        "guidance_scale": row.key.guidance_scale,
        "images": row.count,
        "prompts": row.prompts,
        "values": {key: value.to_dict() for key, value in row.values.items()},
    }


def warning_sentences(results: Mapping[str, Any], flat: Sequence[str] = ()) -> list[str]:
    """What must be known before any number is read.

    Args:
        results: the content of metrics.json but for these sentences, the lights and the verdict.
        flat: sentences about the images themselves.
    """
    reference = results["reference"]
    sentences = [warning.replace(REAL_IMAGES, reference) for warning in flat]
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
    return sentences + chain_sentences(results["settings"])


def verdict(results: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in three sentences: how near the nearest set is, how it stands, what nobody looked for."""
    best, lights = results["best"], results["lights"]
    return [_nearest_sentence(results, best), _lights_sentence(lights, results["reference"]), _sight_sentence(lights)]


def _nearest_sentence(results: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    reference = results["reference"]
    if best is None or best["measure"] is None:
        return f"No distance between {reference} and generated images could be computed; the tables' notes say why."
    measure = next(measure for measure in results["measures"] if measure["key"] == best["measure"])
    rows = [row for row in results["rows"] if row["kind"] == GENERATED and value_of(row, measure["key"]) is not None]
    row = next(row for row in rows if is_set(row, best))
    several = f"Of {len(rows)} generated sets {label(row)} is closest to the {reference}: it"
    floor = floor_of(measure["key"], results["rows"])
    halves = "" if floor is None else f", two halves of the {reference} have {_number(floor)}"
    apart = "" if measure["standard"] else " (not to be set beside published FID or KID)"
    own = f"{measure['name']} {_number(row['values'][measure['key']])}"
    return f"{several if len(rows) > 1 else label(row)} has {own}{halves}{apart}."


def _lights_sentence(lights: Sequence[Mapping[str, Any]], reference: str) -> str:
    """The questions by their lights, the worst first."""
    groups = {
        colour: [light["name"].lower() for light in lights if light["light"] == colour]
        for colour in (RED, AMBER, GREEN, GREY)
    }
    parts = [f"{WORDS[colour]} in {_listed(names)}" for colour, names in groups.items() if names]
    return f"Beside {reference} it is {'; '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _sight_sentence(lights: Sequence[Mapping[str, Any]]) -> str:
    """Which faults could be there unseen."""
    unseen = list(dict.fromkeys(in_sentence(fault) for light in lights for fault in light["cannot_see"]))
    if unseen:
        return f"What no measure computed here is known to see: {', '.join(unseen)}."
    if any(light["light"] == GREY for light in lights):
        return "Where nothing is judged, no measure was computed that is known to see the question's faults."
    return "Together the measures that this rests on see every fault that was tried."


def is_set(row: Mapping[str, Any], named: Mapping[str, Any]) -> bool:
    """Whether a row is the generated set that has this model and guidance scale."""
    return (row["model"], row["guidance_scale"]) == (named["model"], named["guidance_scale"])


def _number(value: Mapping[str, Any]) -> str:
    return with_interval(value["value"], value["ci95"])


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


def label(row: Mapping[str, Any]) -> str:
    """A row's name in words."""
    scale = row["guidance_scale"]
    return row["model"] if scale is None else f"{row['model']} at guidance scale {scale:g}"


def arrow(measure: Mapping[str, Any]) -> str:
    """Which way is better: an arrow down, up, or both ways for "near the real images' value"."""
    return {LOWER: "↓", HIGHER: "↑"}.get(measure["better"], "≈ real")
