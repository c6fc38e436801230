"""What an evaluation finds out beside the table: copies, dose response, readers' agreement, natural grey values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from nodule_plugin.data.image_set import ATTACK, DOSE, GENERATED, REAL, TRAINING, ImageSet
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.agreement import CALCIFIED, reader_agreement
from nodule_plugin.metrics.attributes import FindingMeasure
from nodule_plugin.metrics.copies import CopyMeasure
from nodule_plugin.metrics.distances import DistanceMeasure
from nodule_plugin.metrics.dose_response import dose_curves
from nodule_plugin.metrics.grey_values import BINS, GreyValueFeatures, grey_value_curves
from nodule_plugin.metrics.intervals import Rate
from nodule_plugin.metrics.measures import Measure
from nodule_plugin.metrics.memorization import CopyDetector, Inspection, attack_result, nearness
from nodule_plugin.metrics.noise_power import NoisePowerFeatures, noise_power_curves
from nodule_plugin.metrics.two_samples import MIN_IMAGES

CLOSEST_PAIRS = 12
NO_STUDIES: dict[str, Any] = {
    **{"memorization": None, "dose_response": [], "readers": {}, "grey_values": None, "noise_power": None}
}
"""What :func:`run_studies` gives where nothing is there to study."""
T = TypeVar("T")


def run_studies(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any]:
    """Run those studies whose images are there.

    Args:
        sets: of all kinds, exactly one of them real.
        measures: the table's columns; the copy measure brings the detector, finding measures the reader of ratings.

    Returns:
        In plain JSON types: ``memorization`` (None without training images), ``dose_response`` (a list of curves),
        ``readers`` (agreement by rating; empty where no finding is measured), ``grey_values`` (real and generated sets'
        mean histograms) and ``noise_power`` (their noise power spectra), None where they are not measured.
    """
    studies: dict[str, Callable[[Sequence[ImageSet], Sequence[Measure]], Any]] = {
        "memorization": _memorization,
        "dose_response": _dose_response,
        "readers": _readers,
        "grey_values": _grey_values,
        "noise_power": _noise_power,
    }
    found = {}
    with tqdm(studies.items(), unit="study") as progress:
        for name, study in progress:
            progress.set_description(f"study: {name.replace('_', ' ')}")
            found[name] = study(sets, measures)
    return found


def _of_kind(sets: Sequence[ImageSet], kind: str) -> list[ImageSet]:
    own = [images for images in sets if images.key.kind == kind]
    return sorted(own, key=lambda images: (images.key.model, images.key.guidance_scale or 0.0))


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


def _readers(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any]:
    ratings = [measure.rating for measure in measures if isinstance(measure, FindingMeasure)]
    if not ratings:
        return {}
    agreements = reader_agreement()
    return {rating: asdict(agreements[CALCIFIED if rating == "calcification" else rating]) for rating in ratings}


def _shown(sets: Sequence[ImageSet]) -> list[ImageSet]:
    """What curves are drawn of: the real images first, then generated sets."""
    return [images for kind in (REAL, GENERATED) for images in _of_kind(sets, kind)]


def _extractor(measures: Sequence[Measure], kind: type[T]) -> T | None:
    extractors: list[Any] = [measure.extractor for measure in measures if isinstance(measure, DistanceMeasure)]
    return next((extractor for extractor in extractors if isinstance(extractor, kind)), None)


def _grey_values(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any] | None:
    extractor = _extractor(measures, GreyValueFeatures)
    if extractor is None:
        return None
    low, high = extractor.window_hu
    return {
        "hu": (low + (high - low) * (np.arange(BINS) + 0.5) / BINS).tolist(),
        "sets": [
            {"kind": images.key.kind, **_row(images), **grey_value_curves(images, extractor.id)}
            for images in _shown(sets)
        ],
    }


def _noise_power(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any] | None:
    extractor = _extractor(measures, NoisePowerFeatures)
    if extractor is None:
        return None
    shown = _shown(sets)
    return noise_power_curves(shown, shown[0], extractor.id)


def _memorization(sets: Sequence[ImageSet], measures: Sequence[Measure]) -> dict[str, Any] | None:
    measure = next((measure for measure in measures if isinstance(measure, CopyMeasure)), None)
    seen = _of_kind(sets, TRAINING)
    (real,) = _of_kind(sets, REAL)
    if measure is None or not seen or len(real) < MIN_IMAGES or real.of_patients(seen[0]):
        return None
    training = seen[0]
    detector = measure.detector(real, training)
    rows, pairs = [], []
    for images in _of_kind(sets, GENERATED):
        inspection = measure.inspect(images, detector)
        compared = {
            name: asdict(nearness(near.likeness, detector.held_out[name])) for name, near in inspection.nearest.items()
        }
        copies = Rate(int(inspection.copies.sum()), len(images)).to_dict()
        rows.append({**_row(images), "copies": copies, "nearness": compared})
        pairs += _pairs(images, training, detector, inspection)
    pairs.sort(key=lambda pair: (-pair["above_held_out"], -pair["likeness"]))
    missed_by = {name: missed.to_dict() for name, missed in detector.missed_by.items()}
    return {
        "training_images": len(training),
        "held_out_images": len(real),
        "detector": {**detector.describe(), "missed_by": missed_by},
        "sets": rows,
        "closest_pairs": _distinct(pairs)[:CLOSEST_PAIRS],
        "attacks": [_attack(images, training, detector) for images in _of_kind(sets, ATTACK)],
    }


def _row(images: ImageSet) -> dict[str, Any]:
    return {"model": images.key.model, "guidance_scale": images.key.guidance_scale}


def _pairs(
    images: ImageSet, training: ImageSet, detector: CopyDetector, inspection: Inspection
) -> list[dict[str, Any]]:
    """The images most like a training image, by each likeness."""
    return [
        {
            **_row(images),
            "image": images.records[index].id,
            "training": training.records[near.index[index]].id,
            "by": name,
            "likeness": float(near.likeness[index]),
            # Likenesses differ in scale: how many held-out images are less alike tells which stands out.
            "above_held_out": float((detector.held_out[name] < near.likeness[index]).mean()),
            "copy": bool(inspection.copies[index]),
        }
        for name, near in inspection.nearest.items()
        for index in np.argsort(-near.likeness, kind="stable")[:CLOSEST_PAIRS]
    ]


def _distinct(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each image once, by the likeness that stands out most."""
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for pair in pairs:
        seen.setdefault((pair["model"], pair["guidance_scale"], pair["image"]), pair)
    return list(seen.values())


def _attack(images: ImageSet, training: ImageSet, detector: CopyDetector) -> dict[str, Any]:
    index_of = {record.id: index for index, record in enumerate(training.records)}
    known = [index for index, record in enumerate(images.records) if record.source_id in index_of]
    if not known:
        raise InputError(
            f"attack set {images.key.model}: none of its images comes from a training nodule of training_datalist; "
            "generate it with split=training of that data list"
        )
    chosen = images.take(known)
    attack = attack_result(detector, chosen.images, [index_of[record.source_id or ""] for record in chosen.records])
    return {
        **_row(images),
        "images": len(known),
        **asdict(attack),
        "copies": attack.copies.to_dict(),
        "own_nearest": attack.own_nearest.to_dict(),
    }
