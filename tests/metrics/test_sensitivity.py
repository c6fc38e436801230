from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crops_folder import write_volume
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from warm import run_python

from nodule_plugin.data.image_set import REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.data.transforms import nodule_transform
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.attributes import FindingReader, finding_measures
from nodule_plugin.metrics.copies import CopyMeasure
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.imagenet import ImageNetFeatures
from nodule_plugin.metrics.measures import HIGHER, LOWER, NEAR_REAL, Measure
from nodule_plugin.metrics.sensitivity import load_sensitivity, run_sensitivity, summary
from nodule_plugin.metrics.sensitivity_faults import FAULTS, KERNELS, Bench, Fault

BY_KEY = {fault.key: fault for fault in FAULTS}
QUESTIONS = {"distance", "findings", "copies", "diversity", "noise"}


class Brightness:
    """Mean grey value: sees a shift, blind to all that keeps the mean."""

    id = name = fingerprint = "brightness"
    unavailable: str | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return (images.mean((1, 2, 3)) * 64).round()[:, None] / 64


class Nothing(Brightness):
    id = name = fingerprint = "nothing"

    def __call__(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 2)


def _items(count: int, seed: int = 0, patients: str = "P") -> list[dict[str, Any]]:
    """Drawn nodules with grain, as bright as their margin rating says; a patient each."""
    draw = np.random.default_rng(seed)
    items = []
    for index in range(count):
        code = int(draw.integers(1, 6))
        rows, columns = np.mgrid[:64, :64] - 32
        disc = np.hypot(rows, columns) < draw.uniform(8, 20)
        grain = gaussian_filter(draw.standard_normal((64, 64)), 0.7)
        image = np.clip(0.25 * (code - 3) - 0.2 + 0.2 * disc + 0.1 * grain, -1, 1).astype(np.float32)
        ratings = {"margin": code, "malignancy": 1 + index % 5}
        record = ImageRecord(f"{patients}{index}", f"margin {code}", None, f"{patients}{index}", ratings)
        items.append({"image": torch.from_numpy(image).expand(3, -1, -1), "record": record})
    return items


def _load(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": item["image"]}


def _run(tmp_path: Path, measures: list[Measure], faults: list[str], **settings: Any) -> dict[str, Any]:
    given = {"real_items": _items(24), "halvings": 6} | settings
    tried = [BY_KEY[key] for key in faults]
    chain = nodule_transform(64)
    return run_sensitivity(load=_load, chain=chain, measures=measures, cache_dir=tmp_path, faults=tried, **given)


def _of(results: Mapping[str, Any], measure: str, fault: str) -> dict[str, Any]:
    (found,) = [one["faults"][fault] for one in results["measures"] if one["key"] == measure]
    return dict(found)


def test_a_published_network_sees_blur_that_the_mean_does_not_show(tmp_path: Path) -> None:
    columns = Distances(subsets=1)
    measures = [*columns(ImageNetFeatures(), "kd", suffix="imagenet"), *columns(Brightness(), "kd", suffix="mean")]
    results = _run(tmp_path, measures, ["blur"], real_items=_items(16))
    seen = _of(results, "kd_imagenet", "blur")
    assert seen["first_step_seen"] in BY_KEY["blur"].steps
    assert seen["tau"] > 0.8
    assert seen["values"] == sorted(seen["values"])
    assert all(low < value < high for value, (low, high) in zip(seen["values"], seen["ci95"]))
    assert _of(results, "kd_mean", "blur")["first_step_seen"] is None


def test_a_blind_measure_has_neither_a_step_nor_a_rank(tmp_path: Path) -> None:
    results = _run(tmp_path, Distances(subsets=1)(Nothing(), "kd", "cmmd", suffix="nothing"), ["hu_shift", "jpeg"])
    for fault in ("hu_shift", "jpeg"):
        found = _of(results, "kd_nothing", fault)
        assert (found["first_step_seen"], found["tau"]) == (None, None)
        assert found["values"] == [0.0] * len(BY_KEY[fault].steps)


def test_only_what_bears_on_findings_sees_that_they_were_exchanged(tmp_path: Path) -> None:
    reader = FindingReader([Brightness()])
    measures = [*finding_measures(reader, ["margin"]), *Distances(subsets=1)(Brightness(), "kd", suffix="mean")]
    results = _run(tmp_path, measures, ["findings"], training_items=_items(40, 1, "T"))
    exchanged = _of(results, "finding_margin", "findings")
    assert exchanged["first_step_seen"] is not None
    assert exchanged["tau"] > 0.8
    assert exchanged["values"] == sorted(exchanged["values"], reverse=True)  # a kappa falls
    unseen = _of(results, "kd_mean", "findings")
    assert (unseen["first_step_seen"], unseen["tau"]) == (None, None)


def test_copies_are_seen_where_training_images_are_given(tmp_path: Path) -> None:
    measures: list[Measure] = [
        CopyMeasure("copies", "Copies", planted=20),
        *Distances()(Brightness(), "kd", suffix="m"),
    ]
    training = _items(30, 1, "T")
    found = _of(_run(tmp_path, measures, ["copies"], training_items=training), "copies", "copies")
    assert found["first_step_seen"] is not None
    assert found["tau"] > 0.85
    assert found["values"][-1] == pytest.approx(0.25, abs=0.1)
    alone = _run(tmp_path, measures, ["copies", "blur"])
    assert [fault["key"] for fault in alone["faults"]] == ["blur"]
    assert [measure["key"] for measure in alone["measures"]] == ["kd_m"]


STEPS, FLOOR = (1.0, 2.0, 3.0), np.array([0.9, 1.0, 1.1, 1.0])


@pytest.mark.parametrize(
    ("better", "change", "seen", "tau"),
    [
        (LOWER, (0.1, 1.0, 2.0), 2.0, 1.0),
        (LOWER, (1.0, 0.0, 2.0), 3.0, 3 / 30**0.5),  # a step that is seen by chance does not count
        (LOWER, (-1.0, -2.0, -3.0), None, -1.0),  # misled: better numbers for worse images
        (HIGHER, (-0.1, -1.0, -2.0), 2.0, 1.0),
        (HIGHER, (0.1, 1.0, 2.0), None, -1.0),
        (NEAR_REAL, (-0.1, -1.0, -2.0), 2.0, 1.0),
        (NEAR_REAL, (0.1, 1.0, 2.0), 2.0, 1.0),
        (LOWER, (0.0, 0.0, 0.0), None, None),
    ],
)
def test_the_first_step_seen_and_the_sign_of_tau(
    better: str, change: tuple[float, ...], seen: float | None, tau: float | None
) -> None:
    worse = FLOOR + np.array(change)[:, None]
    found = summary(STEPS, FLOOR, FLOOR, worse, better)
    assert found["first_step_seen"] == seen
    assert found["tau"] == (None if tau is None else pytest.approx(tau, abs=1e-3))
    assert found["values"] == pytest.approx(1 + np.array(change))


def test_sets_of_another_size_are_compared_with_their_like() -> None:
    small, worse = FLOOR + 5, FLOOR + 5 + np.array([0.0, 0.0, 1.0])[:, None]
    found = summary(STEPS, FLOOR, small, worse, LOWER)
    assert found["values"] == pytest.approx([1, 1, 2])
    assert found["first_step_seen"] == 3.0
    gone = summary(STEPS, FLOOR, small, np.full((3, 4), np.nan), LOWER)
    assert gone == {"values": [None] * 3, "ci95": [None] * 3, "first_step_seen": None, "tau": None}


def _set(count: int, seed: int = 0, kind: str = REAL) -> ImageSet:
    items = _items(count, seed, kind)
    images = [((item["image"] + 1) * 127.5).to(torch.uint8) for item in items]
    numbers = torch.arange(count, dtype=torch.float32)[:, None] + 1000 * (kind == TRAINING)
    return ImageSet(SetKey(kind, kind), [item["record"] for item in items], images, {"number": numbers})


def _on_set(key: str, images: ImageSet, step: float, training: ImageSet | None = None) -> ImageSet:
    on_set = BY_KEY[key].on_set
    assert on_set is not None
    return on_set(images, step, training, np.random.default_rng(0))


def _numbers(images: ImageSet) -> list[float]:
    return images.features_of("number").read()[:, 0].tolist()


@pytest.mark.parametrize("key", ["findings", "copies", "repeats"])
def test_faults_of_sets_change_as_many_images_as_they_say(key: str) -> None:
    images, training = _set(40), _set(30, 1, TRAINING)
    assert _numbers(_on_set(key, images, 0.0, training)) == _numbers(images)
    worse = _on_set(key, images, 0.5, training)
    assert len(worse) == 40
    exchanged = sum(one.ratings != other.ratings for one, other in zip(images.records, worse.records))
    replaced = sum(one != other for one, other in zip(_numbers(images), _numbers(worse)))
    if key == "findings":
        assert 5 < exchanged <= 20
        assert replaced == 0
        assert sorted(record.prompt or "" for record in worse.records) == sorted(r.prompt or "" for r in images.records)
    else:
        assert exchanged == 0
        assert 10 < replaced <= 20
    if key == "copies":
        taken = [int(number) - 1000 for number in _numbers(worse) if number >= 1000]
        places = [place for place, number in enumerate(_numbers(worse)) if number >= 1000]
        assert len(taken) == 20
        for place, index in zip(places, taken):
            assert worse.images[place].equal(training.images[index])
            assert worse.records[place].prompt == training.records[index].prompt
    if key == "repeats":
        whole = _on_set(key, images, 1.0)
        assert len(set(_numbers(whole))) == len({record.prompt for record in images.records})


def test_dropping_a_mode_keeps_the_number_of_images() -> None:
    images = _set(50)  # 20 of malignancy 1 and 2
    sets = [_on_set("modes", images, step) for step in (0.0, 0.5, 1.0)]
    benign = [sum(record.ratings["malignancy"] < 3 for record in one.records) for one in sets]
    assert [len(one) for one in sets] == [30, 30, 30]
    assert benign == [12, 6, 0]


def _bench(tmp_path: Path, voxels: np.ndarray, roi_mm: float = 10.0) -> Bench:
    write_volume(tmp_path / "a.nii.gz", voxels.T[:, :, None].astype(np.int16), (0.5, 0.5, 1.0))
    item = {"image": str(tmp_path / "a.nii.gz"), "slice_index": 0, "centre": [31.5, 31.5], "spacing": [0.5, 0.5]}
    return Bench(item | {"roi_mm": roi_mm}, np.random.default_rng(0), nodule_transform(64))


def _on_image(fault: Fault, bench: Bench, step: float) -> np.ndarray:
    assert fault.on_image is not None
    return fault.on_image(bench.chain(bench.item)["image"][0].numpy(), step, bench)


def test_what_is_cut_anew_shows_tissue_and_nothing_invented(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :64] - 31.5
    ramp = -300 + 8 * rows + 4 * columns
    bench = _bench(tmp_path, ramp)
    clean = bench.chain(bench.item)["image"][0].numpy()
    turned = _on_image(BY_KEY["rotation"], bench, 10.0)
    angle = np.deg2rad(10)
    slope = np.array([np.gradient(clean, axis=axis)[32, 32] for axis in (0, 1)])
    expected = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ slope for a in (angle, -angle)]
    for corner in ((0, 0), (32, 32), (63, 63), (0, 63)):  # a plane stays a plane up to the corners
        there = np.array([np.gradient(turned, axis=axis)[corner] for axis in (0, 1)])
        assert min(np.abs(there - one).max() for one in expected) < 1e-3
    near_edge = _bench(tmp_path, ramp, roi_mm=31.0)
    assert _on_image(BY_KEY["rotation"], near_edge, 10.0) == pytest.approx(near_edge.chain(near_edge.item)["image"][0])
    narrow = _on_image(BY_KEY["roi"], bench, 1.2)
    assert np.ptp(narrow) == pytest.approx(0.6 * np.ptp(clean), rel=0.02)
    nearest = [_on_image(BY_KEY["kernel"], bench, step) for step in KERNELS][1]
    assert len(np.unique(nearest[0])) == 20  # columns of the region


@pytest.mark.parametrize("key", [fault.key for fault in FAULTS if fault.on_image and not fault.needs])
def test_each_step_is_further_from_the_clean_image(key: str, tmp_path: Path) -> None:
    image, fault, chain = _items(1)[0]["image"][0].numpy(), BY_KEY[key], nodule_transform(64)
    assert fault.on_image is not None
    worse = [fault.on_image(image, step, Bench({}, np.random.default_rng(0), chain)) for step in fault.steps]
    changes = [float(np.abs(one.clip(-1, 1) - image).mean()) for one in worse]
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_noise_is_of_the_strength_that_it_says() -> None:
    bench = Bench({}, np.random.default_rng(0), nodule_transform(64))
    fault = BY_KEY["noise_added"].on_image
    assert fault is not None
    assert np.std(fault(np.zeros((64, 64), np.float32), 40, bench)) * 700 == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"real_items": _items(5)}, r"^sensitivity: 5 real images of 5 patients; halves of at least 8 patients"),
        ({"halvings": 1}, r"^halvings: 1; at least 2 are needed"),
        ({"measures": []}, r"^sensitivity: no measure could be computed of these images"),
    ],
)
def test_what_cannot_be_tried_is_one_clear_error(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    measures = settings.pop("measures", Distances()(Brightness(), "kd", suffix="m"))
    with pytest.raises(InputError, match=message):
        _run(tmp_path, measures, ["blur"], **settings)


@pytest.mark.slow
def test_the_command_tries_the_measures_of_evaluate_on_a_folder_of_pictures(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for index, item in enumerate(_items(8)):
        picture = ((item["image"][0] + 1) * 127.5).numpy().astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "real" / f"{index}.png")
    words = [
        "--real_dir",
        "real",
        "--output_dir",
        "out",
        "--halvings",
        "2",
        "--autoencoder",
        "null",
        "--error_repeats",
        "2",
    ]
    command = [sys.executable, "-m", "nodule_plugin.cli", "sensitivity", *words]
    done = run_python(command, tmp_path, os.environ | {"PYTHONPATH": str(repository)})
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "out" / "sensitivity.json").read_text(encoding="utf-8"))
    assert [fault["key"] for fault in results["faults"]] == [
        fault.key for fault in FAULTS if fault.on_image and not fault.needs
    ]
    assert {"kd_imagenet", "krd", "hu_histogram"} <= {measure["key"] for measure in results["measures"]}
    assert done.stdout.split()[-1].endswith("sensitivity.json")


def test_the_shipped_table_is_as_its_readers_take_it() -> None:
    shipped = load_sensitivity()
    assert (shipped["format"], shipped["version"]) == ("nodule-plugin sensitivity", 1)
    assert {"chain", "window_hu", "bits", "image_size", "images", "patients", "halvings"} <= set(shipped["convention"])
    assert [(fault["key"], fault["question"]) for fault in shipped["faults"]] == [(f.key, f.question) for f in FAULTS]
    assert {fault["question"] for fault in shipped["faults"]} == QUESTIONS
    steps = {fault["key"]: fault["steps"] for fault in shipped["faults"]}
    keys = {measure["key"] for measure in shipped["measures"]}
    assert {"kd_imagenet", "kd_tiny", "krd", "noise_power", "precision_tiny", "copies", "finding_margin"} <= keys
    for measure in shipped["measures"]:
        assert set(measure["faults"]) == set(steps)
        assert measure["floor"]["ci95"][0] <= measure["floor"]["value"] <= measure["floor"]["ci95"][1]
        for key, found in measure["faults"].items():
            assert len(found["values"]) == len(found["ci95"]) == len(steps[key])
            assert found["first_step_seen"] in [*steps[key], None]
            assert found["tau"] is None or -1 <= found["tau"] <= 1
    json.dumps(shipped, allow_nan=False)
