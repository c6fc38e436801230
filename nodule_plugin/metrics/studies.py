"""What an evaluation finds out beside the table: copies, dose response, readers' agreement, natural grey values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nodule_plugin.data.image_set import ATTACK, DOSE, GENERATED, REAL, TRAINING, ImageSet
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.agreement import CALCIFIED, reader_agreement
from nodule_plugin.metrics.attributes import FindingMeasure
from nodule_plugin.metrics.beyond import CopyMeasure
from nodule_plugin.metrics.dose_response import dose_curves
from nodule_plugin.metrics.grey_values import BANDS, BINS, GreyValueMeasure, grey_value_curves
from nodule_plugin.metrics.measures import Measure
from nodule_plugin.metrics.memorization import CopyDetector, Rate, attack_result, nearness
from nodule_plugin.metrics.two_samples import MIN_IMAGES

CLOSEST_PAIRS = 12


def run_studies(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any]:
    """Run those studies whose images are there.

    Args:
        sets: of all kinds, exactly one of them real.
        measures: the table's columns; the copy measure brings the detector, finding measures the reader of ratings.

    Returns:
        In plain JSON types: ``memorization`` (None without training images), ``dose_response`` (a list of curves),
        ``readers`` (agreement by rating; empty where no finding is measured), ``grey_values`` (real and generated sets'
        mean histograms and power spectra; None where they are not measured).
    """
    return {
        "memorization": _memorization(sets, measures),
        "dose_response": _dose_response(sets, measures),
        "readers": _readers(measures),
        "grey_values": _grey_values(sets, measures),
    }


def _of_kind(sets: Sequence[ImageSet], kind: str) -> list[ImageSet]:
    found = [images for images in sets if images.key.kind == kind]
    return sorted(found, key=lambda images: (images.key.model, images.key.guidance_scale or 0.0))


def _dose_response(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> list[dict[str, Any]]:
    findings = [measure for measure in measures if isinstance(measure, FindingMeasure) and not measure.unavailable]
    training = _of_kind(sets, TRAINING)
    if not findings or not training:
        return []
    (real,) = _of_kind(sets, REAL)
    curves = [
        curve for images in _of_kind(sets, DOSE) for curve in dose_curves(images, real, training[0], findings[0].reader)
    ]
    return [{**asdict(curve), "monotone": curve.monotone} for curve in curves]


def _readers(measures: Sequence[Measure]) -> dict[str, Any]:
    ratings = [measure.rating for measure in measures if isinstance(measure, FindingMeasure)]
    if not ratings:
        return {}
    found = reader_agreement()
    return {rating: asdict(found[CALCIFIED if rating == "calcification" else rating]) for rating in ratings}


def _grey_values(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any] | None:
    measure = next((measure for measure in measures if isinstance(measure, GreyValueMeasure)), None)
    if measure is None:
        return None
    low, high = measure.window_hu
    shown = [images for kind in (REAL, GENERATED) for images in _of_kind(sets, kind)]
    return {
        "hu": (low + (high - low) * (np.arange(BINS) + 0.5) / BINS).tolist(),
        "cycles_per_pixel": ((np.arange(BANDS) + 0.5) / (2 * BANDS)).tolist(),
        "sets": [
            {
                "kind": images.key.kind,
                "model": images.key.model,
                "guidance_scale": images.key.guidance_scale,
                **grey_value_curves(images, measure.features.id),
            }
            for images in shown
        ],
    }


def _memorization(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any] | None:
    measure = next((measure for measure in measures if isinstance(measure, CopyMeasure)), None)
    found = _of_kind(sets, TRAINING)
    (real,) = _of_kind(sets, REAL)
    if measure is None or not found or len(real) < MIN_IMAGES or real.of_patients(found[0]):
        return None
    training = found[0]
    detector = measure.detector(real, training)
    rows, pairs = [], []
    for images in _of_kind(sets, GENERATED):
        inspection = measure.inspect(images, detector)
        row = {"model": images.key.model, "guidance_scale": images.key.guidance_scale}
        copies = Rate(int(inspection.copies.sum()), len(images))
        compared = {
            name: asdict(nearness(near.likeness, detector.held_out[name])) for name, near in inspection.nearest.items()
        }
        rows.append({**row, "copies": rate(copies), "nearness": compared})
        for name, near in inspection.nearest.items():
            pairs += [
                {
                    **row,
                    "image": images.records[place].id,
                    "training": training.records[near.place[place]].id,
                    "by": name,
                    "likeness": float(near.likeness[place]),
                    # Likenesses differ in scale: how many held-out images are less alike tells which stands out.
                    "above_held_out": float((detector.held_out[name] < near.likeness[place]).mean()),
                    "copy": bool(inspection.copies[place]),
                }
                for place in np.argsort(-near.likeness)[:CLOSEST_PAIRS]
            ]
    pairs.sort(key=lambda pair: (-pair["above_held_out"], -pair["likeness"]))
    return {
        "training_images": len(training),
        "held_out_images": len(real),
        "detector": {
            "accepted_false_alarms": detector.accepted,
            "thresholds": detector.thresholds,
            "false_alarms": rate(detector.false_alarms),
            "misses": rate(detector.misses),
            "missed_by": {name: rate(found) for name, found in detector.missed_by.items()},
        },
        "sets": rows,
        "closest_pairs": _distinct(pairs)[:CLOSEST_PAIRS],
        "attacks": [_attack(images, training, detector) for images in _of_kind(sets, ATTACK)],
    }


def rate(found: Rate) -> dict[str, Any]:
    """As metrics.json holds it."""
    return {"hits": found.hits, "count": found.count, "share": found.share, "ci95": list(found.interval)}


def _distinct(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each image once, by the likeness that stands out most."""
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for pair in pairs:
        seen.setdefault((pair["model"], pair["guidance_scale"], pair["image"]), pair)
    return list(seen.values())


def _attack(images: ImageSet, training: ImageSet, detector: CopyDetector) -> dict[str, Any]:
    place = {record.id: index for index, record in enumerate(training.records)}
    known = [index for index, record in enumerate(images.records) if record.source_id in place]
    if not known:
        raise InputError(
            f"attack set {images.key.model}: none of its images comes from a training nodule of training_datalist; "
            "generate it with split=training of that data list"
        )
    chosen = images.take(known)
    found = attack_result(detector, chosen.images, [place[record.source_id or ""] for record in chosen.records])
    return {
        "model": images.key.model,
        "guidance_scale": images.key.guidance_scale,
        "images": len(known),
        "prompts": found.prompts,
        "copies": rate(found.copies),
        "own_nearest": rate(found.own_nearest),
        "chance_nearest": found.chance_nearest,
        "own_rank": found.own_rank,
        "own_rank_error": found.own_rank_error,
    }
