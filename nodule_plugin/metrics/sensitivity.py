"""What each measure of the evaluation can see: real images made worse by known steps, against other patients' clean.

The real images are halved many times, no patient on both sides. In each halving one half is made worse and measured
against the clean other one, and so is its clean self: what both share, who is in which half, falls out of their
difference. The idea is that of Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", NeurIPS 2017, section A1 (disturbances of growing strength).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import GENERATED, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.transforms import NoduleROId
from nodule_plugin.diffusion.components import load_vae
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.metrics.attributes import FindingMeasure
from nodule_plugin.metrics.copies import CopyMeasure
from nodule_plugin.metrics.distances import DistanceMeasure
from nodule_plugin.metrics.feature_cache import Encoder, FeatureCache, image_key
from nodule_plugin.metrics.intervals import NORMAL_95
from nodule_plugin.metrics.measures import HIGHER, LOWER, Measure
from nodule_plugin.metrics.memorization import CopyDetector
from nodule_plugin.metrics.pair_measures import DiversityMeasure, PairDistanceMeasure
from nodule_plugin.metrics.perceptual import PerceptualDistance
from nodule_plugin.metrics.results_table import half_indices
from nodule_plugin.metrics.sensitivity_faults import FAULTS, Bench, Fault

FORMAT, VERSION = "nodule-plugin sensitivity", 1
FEWEST = 8
"""Patients: the halves of fewer are not worth comparing."""
DIGITS = 4
"""Significant ones of the numbers that are written."""


@cache
def load_sensitivity() -> dict[str, Any]:
    """What the measures were seen to see on the crops of LIDC-IDRI, as it ships with the package.

    Returns:
        ``{"format", "version", "data", "convention", "faults": [{"key", "name", "question", "unit", "steps"}],
        "measures": [{"key", "name", "better", "floor": {"value", "ci95"}, "faults": {key: {"values", "ci95",
        "first_step_seen", "tau"}}}]}``; a measure sees a fault where ``first_step_seen`` is not None.
    """
    content: dict[str, Any] = read_json(Path(__file__).with_suffix(".json"), "install the package anew")
    return content


def run_sensitivity(
    real_items: Sequence[Mapping[str, Any]],
    load: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    chain: NoduleROId,
    measures: Sequence[Measure],
    cache_dir: str | Path,
    training_items: Sequence[Mapping[str, Any]] = (),
    base_model: str | None = None,
    halvings: int = 20,
    seed: int = 0,
    faults: Sequence[Fault] = FAULTS,
    data: str = "real images",
    convention: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure every fault at every step with every measure that can be computed.

    Args:
        real_items: see :func:`nodule_plugin.data.evaluation_images.real_items`; of patients that no network saw.
        load: an item -> its ``image``, see :class:`nodule_plugin.data.evaluation_images.LoadSetImaged`.
        chain: that cuts images of a data list, for faults that cut them anew.
        measures: the table's columns.
        cache_dir: of features, see :mod:`nodule_plugin.metrics.feature_cache`: run again, it goes on where it stopped.
        training_items: of other patients, for what reads findings and finds copies.
        base_model: whose autoencoder is one of the faults; None: none.
        halvings: at least 2.
        seed: of halves and faults.
        faults: to try; those that these images do not allow are left out.
        data: what the images are, in words, for the record.
        convention: of the images, for the record.

    Returns:
        As :func:`load_sensitivity`; measures without any number are left out.

    Raises:
        InputError: if there are too few images or patients, or no measure can be computed.
    """
    if halvings < 2:
        raise InputError(f"halvings: {halvings}; at least 2 are needed to know how far halves differ")
    trial = _Trial(real_items, load, chain, measures, cache_dir, training_items, base_model, halvings, seed)
    tried = [fault for fault in faults if trial.allows(fault)]
    floor = trial.values(trial.halves_of(trial.clean))
    clean = {fault.key: trial.values(trial.worsened(fault, 0.0)) for fault in tried if fault.on_set is not None}
    steps = tqdm([(fault, step) for fault in tried for step in fault.steps], desc="faults")
    numbers = {(fault.key, step): trial.values(trial.worsened(fault, step)) for fault, step in steps}

    def found(number: int, fault: Fault, better: str) -> dict[str, Any]:
        worse = np.stack([numbers[fault.key, step][:, number] for step in fault.steps])
        return summary(fault.steps, floor[:, number], clean.get(fault.key, floor)[:, number], worse, better)

    described = []
    for number, measure in enumerate(trial.measures):
        if np.isnan(floor[:, number]).any():
            continue
        middle, low, high = _interval(floor[:, number])
        described.append(
            {
                "key": measure.key,
                "name": measure.name,
                "better": measure.scale.better,
                "floor": {"value": _short(middle), "ci95": _short([low, high])},
                "faults": {fault.key: found(number, fault, measure.scale.better) for fault in tried},
            }
        )
    if not described:
        raise InputError("sensitivity: no measure could be computed of these images; give more, or weights")
    return {
        "format": FORMAT,
        "version": VERSION,
        "data": data,
        "convention": {**(convention or {}), **trial.describe()},
        "faults": [fault.describe() for fault in tried],
        "measures": described,
    }


def summary(
    steps: Sequence[float], floor: np.ndarray, clean: np.ndarray, worse: np.ndarray, better: str
) -> dict[str, Any]:
    """What one measure says of one fault.

    Args:
        steps: S of them.
        floor: (H,) of clean halves against clean halves.
        clean: (H,) what the worse halves are compared with; the floor, but where the fault changes the sets' size.
        worse: (S, H) at each step.
        better: of the measure's scale: what counts as worse.

    Returns:
        "values" (the floor's and the mean difference from ``clean``), "ci95" (of these differences over the halvings),
        "first_step_seen": the first step from which on the whole interval lies beyond the floor's on the worse side,
        "tau": Kendall's rank correlation of the step with how much worse the number is, mean over halvings.
    """
    none = {"values": [None] * len(steps), "ci95": [None] * len(steps), "first_step_seen": None, "tau": None}
    if np.isnan(worse).any() or np.isnan(clean).any():
        return none
    middle, low, high = _interval(floor)
    intervals = np.array([_interval(difference) for difference in worse - clean]) + middle
    beyond = {LOWER: intervals[:, 1] > high, HIGHER: intervals[:, 2] < low}
    seen = beyond.get(better, beyond[LOWER] | beyond[HIGHER])
    lasting = np.logical_and.accumulate(seen[::-1])[::-1]  # this step, and all stronger ones
    from_clean = np.vstack([clean, worse])
    badness = {LOWER: from_clean, HIGHER: -from_clean}.get(better, np.abs(from_clean - clean))
    taus = [_tau(of_halving) for of_halving in badness.T]
    known = [tau for tau in taus if not np.isnan(tau)]
    return {
        "values": _short(intervals[:, 0].tolist()),
        "ci95": [_short(ends.tolist()) for ends in intervals[:, 1:]],
        "first_step_seen": steps[int(lasting.argmax())] if lasting.any() else None,
        "tau": _short(float(np.mean(known))) if known else None,
    }


def _tau(values: np.ndarray) -> float:
    return float("nan") if np.ptp(values) == 0 else float(kendalltau(np.arange(len(values)), values).statistic)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over halvings, and the ends of 95 % of them."""
    middle, half = float(values.mean()), NORMAL_95 * float(values.std(ddof=1))
    return middle, middle - half, middle + half


def _short(value: Any) -> Any:
    return [_short(each) for each in value] if isinstance(value, list) else float(f"{value:.{DIGITS}g}")


class _Trial:
    """The images, clean and worse, their halves, and the measures in a form that asks for numbers without errors."""

    def __init__(
        self,
        real_items: Sequence[Mapping[str, Any]],
        load: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        chain: NoduleROId,
        measures: Sequence[Measure],
        cache_dir: str | Path,
        training_items: Sequence[Mapping[str, Any]],
        base_model: str | None,
        halvings: int,
        seed: int,
    ) -> None:
        self.items, self.chain, self.cache_dir, self.seed = real_items, chain, cache_dir, seed
        self.records = [item["record"] for item in real_items]
        self.patients = len({record.patient_id or record.id for record in self.records})
        if self.patients < FEWEST:
            raise InputError(
                f"sensitivity: {len(real_items)} real images of {self.patients} patients; halves of at least {FEWEST} "
                "patients can be compared; choose another split or folder"
            )
        self.vae = None if base_model is None else load_vae(base_model)
        self.measures = [_numbers_only(measure) for measure in measures if _applies(measure)]
        self.encoders = {one.id: one for measure in self.measures for one in measure.encoders(GENERATED)}
        self.caches: dict[str, FeatureCache] = {}
        self.pixels = [load(item)["image"][0].numpy() for item in real_items]
        self.clean = self._encoded(REAL, self.records, [_picture(image) for image in self.pixels])
        self.training = None
        if training_items:
            pictures = [
                _picture(load(item)["image"][0].numpy()) for item in tqdm(training_items, desc="training images")
            ]
            self.training = self._encoded(TRAINING, [item["record"] for item in training_items], pictures)
        self._look_for_copies()
        self.halves = [half_indices(self.records, seed + number) for number in range(halvings)]
        self.others = [self.clean.take(second) for _, second in self.halves]

    def _look_for_copies(self) -> None:
        """Whether an image is a copy is asked once of each image, as if it were a feature, and not of each half.

        Not of images made worse, which is slow: how well disguised copies are found is counted in calibration.
        """
        copies = next((measure for measure in self.measures if isinstance(measure, CopyMeasure)), None)
        if copies is None:
            return
        if self.training is None or self.clean.of_patients(self.training):
            self.measures.remove(copies)
            return
        flags = _CopyFlags(copies.detector(self.clean, self.training))
        for images in (self.clean, self.training):
            images.features[flags.id] = self._cache(flags).features_of(images.images, flags.id)

    def allows(self, fault: Fault) -> bool:
        """Whether these images have what the fault needs."""
        return {
            None: True,
            "datalist": all("centre" in item for item in self.items),
            "vae": self.vae is not None,
            "prompts": self.clean.prompts() is not None,
            "malignancy": any("malignancy" in record.ratings for record in self.records),
            "training": self.training is not None,
        }[fault.needs]

    def halves_of(self, images: ImageSet) -> Iterator[ImageSet]:
        """The first half of each halving."""
        return (images.take(first) for first, _ in self.halves)

    def worsened(self, fault: Fault, step: float) -> Iterator[ImageSet]:
        """The same, made worse; a fault of sets acts on each half alone, so that no patient comes to both sides."""
        if fault.on_set is not None:
            for number, half in enumerate(self.halves_of(self.clean)):
                yield fault.on_set(half, step, self.training, np.random.default_rng([self.seed, number]))
            return
        assert fault.on_image is not None
        pictures = []
        for index, (image, item) in enumerate(zip(self.pixels, self.items)):
            bench = Bench(item, np.random.default_rng([self.seed, index]), self.chain, self.vae)
            pictures.append(_picture(fault.on_image(image, step, bench)))
        yield from self.halves_of(self._encoded(GENERATED, self.records, pictures))

    def values(self, halves: Iterable[ImageSet]) -> np.ndarray:
        """(halvings, measures) of first halves against the clean second ones; NaN where there is no number."""
        numbers = [
            [_number(measure, half, other, self.training) for measure in self.measures]
            for half, other in zip(halves, self.others)
        ]
        return np.array(numbers, dtype=float)

    def describe(self) -> dict[str, Any]:
        """How it was measured, for the record."""
        return {
            "images": len(self.items),
            "patients": self.patients,
            "halvings": len(self.halves),
            "seed": self.seed,
            "values": "half of the images, made worse, against the other patients' clean half; mean over halvings",
            "ci95": "1.96 standard deviations, over halvings, of the difference from the clean half against the same",
            "first_step_seen": "from here on the whole interval lies beyond that of the floor, on the worse side",
            "tau": "Kendall's, of the step with how much worse the number is, clean included; mean over halvings",
        }

    def _encoded(self, kind: str, records: Sequence[ImageRecord], pictures: Sequence[Tensor]) -> ImageSet:
        features: dict[str, FeatureRows | Tensor] = {
            name: self._cache(encoder).features_of(pictures, name) for name, encoder in self.encoders.items()
        }
        return ImageSet(SetKey(kind, f"{kind} images"), list(records), pictures, features)

    def _cache(self, encoder: Encoder) -> FeatureCache:
        if encoder.id not in self.caches:
            self.caches[encoder.id] = FeatureCache(self.cache_dir, encoder)
        return self.caches[encoder.id]


def _picture(image: np.ndarray) -> Tensor:
    """(H, W) in [-1, 1] -> (3, H, W) uint8."""
    return to_uint8(torch.from_numpy(np.asarray(image, np.float32)).expand(1, 3, -1, -1))[0]


def _applies(measure: Measure) -> bool:
    """Whether real images can have it: none of them was generated from another one."""
    return measure.unavailable is None and not isinstance(measure, PairDistanceMeasure)


def _numbers_only(measure: Measure) -> Measure:
    """The measure without its error, which halvings give, and without computing a pair's distance twice."""
    if isinstance(measure, FindingMeasure):
        return replace(measure, repeats=0)
    if isinstance(measure, DiversityMeasure):
        return replace(measure, distance=_RememberedDistance(measure.distance))
    return measure


def _number(measure: Measure, images: ImageSet, other: ImageSet, training: ImageSet | None) -> float | None:
    if isinstance(measure, DistanceMeasure):
        return measure.between(images, other)
    if isinstance(measure, CopyMeasure):
        return float(images.features_of(_CopyFlags.id).read().mean()) if _CopyFlags.id in images.features else None
    return measure.measure(images, other, training).value


class _CopyFlags:
    """1 for an image that a detector calls a copy, 0 for others, as an encoder."""

    id = name = "copies"

    def __init__(self, detector: CopyDetector) -> None:
        self.detector = detector

    @property
    def fingerprint(self) -> str:
        """Of the likenesses that calibrated it: other training or held-out images give others."""
        digest = hashlib.sha256(repr(sorted(self.detector.thresholds.items())).encode())
        for name, likeness in sorted(self.detector.held_out.items()):
            digest.update(name.encode() + np.ascontiguousarray(likeness).tobytes())
        return digest.hexdigest()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, 1)."""
        return torch.from_numpy(self.detector.inspect(list(to_uint8(images))).copies[:, None]).float()


class _RememberedDistance:
    """A perceptual distance that computes each pair of images once: the same pairs are in many halves."""

    def __init__(self, distance: PerceptualDistance) -> None:
        self.distance, self.name, self.unavailable = distance, distance.name, distance.unavailable
        self._known: dict[bytes, float] = {}

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        keys = [image_key(one) + image_key(other) for one, other in zip(first, second)]
        new = [index for index, key in enumerate(keys) if key not in self._known]
        if new:
            self._known.update(zip((keys[index] for index in new), self.distance(first[new], second[new]).tolist()))
        return torch.tensor([self._known[key] for key in keys])
