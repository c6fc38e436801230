from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nodule_plugin.data.image_set import GENERATED, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.metrics.attributes import FindingMeasure, FindingReader, rating_of


class Moments:
    """Mean and deviation of each image: enough to read a rating that is painted as brightness."""

    id = name = fingerprint = "moments"
    unavailable: str | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


def _set(kind: str, count: int, seed: int, obeys: bool = True) -> ImageSet:
    """Images as bright as their margin rating says, or as another's."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1, 6, (count,), generator=generator)
    shown = codes if obeys else codes[torch.randperm(count, generator=generator)]
    noise = torch.randint(0, 30, (count, 3, 8, 8), generator=generator)
    images = [(40 * int(code) + noise[i]).clamp(0, 255).to(torch.uint8) for i, code in enumerate(shown)]
    records = [
        ImageRecord(
            f"{kind}{i}",
            patient_id=f"{i // 2}",
            ratings={"margin": int(code), "texture": 5, "calcification": 6 if code > 2 else 3},
        )
        for i, code in enumerate(codes)
    ]
    features = Moments()(torch.stack(images).float() / 127.5 - 1)
    return ImageSet(SetKey(kind, kind), records, images, {"moments": features})


def _measure(rating: str) -> FindingMeasure:
    return FindingMeasure("finding", "Finding", rating, FindingReader([Moments()]))


@pytest.mark.parametrize("rating", ["margin", "calcification"])
def test_findings_that_are_shown_are_read_and_others_are_not(rating: str) -> None:
    training = _set(TRAINING, 60, 0)
    obedient, wilful = _set(GENERATED, 60, 1), _set(GENERATED, 60, 1, obeys=False)
    shown, ignored = (_measure(rating).measure(images, images, training) for images in (obedient, wilful))
    assert shown.value is not None
    assert shown.value > 0.8
    assert shown.details["within_one"] >= shown.details["exact"] > 0.7 > ignored.details["exact"]
    assert ignored.value is not None
    assert ignored.standard_error is not None
    assert abs(ignored.value) < 3 * ignored.standard_error
    low, high = shown.details["exact_ci95"]
    assert low < shown.details["exact"] <= high


def test_perfect_agreement_has_an_interval_too() -> None:
    reader = FindingReader([Moments()])
    images = _set(GENERATED, 60, 1)
    value = FindingMeasure("f", "F", "calcification", reader).measure(images, images, _set(TRAINING, 60, 0))
    assert value.value == 1.0
    low, high = value.to_dict()["ci95"]
    assert 0.5 < low < 1.0 == high


def test_images_of_training_patients_say_nothing_of_how_well_it_reads() -> None:
    training, generated = _set(TRAINING, 60, 0), _set(GENERATED, 60, 1)
    seen = _set(REAL, 40, 2)
    held_out = seen.take(range(40))
    held_out.records = [replace(record, patient_id=f"other {record.patient_id}") for record in seen.records]
    margin = _measure("margin")
    assert margin.measure(seen, seen, training).reason == "40 of 40 real images are of training patients"
    assert margin.measure(held_out, held_out, training).value is not None
    assert margin.measure(generated, seen, training).value is not None


def test_what_cannot_be_read_says_why() -> None:
    training, images = _set(TRAINING, 60, 0), _set(GENERATED, 10, 1)
    margin = _measure("margin")
    assert margin.measure(images, images).reason == "no training images given"
    assert "too few training images" in str(_measure("texture").measure(images, images, training).reason)
    assert "too few training images" in str(margin.measure(images, images, training.take(range(10))).reason)
    few, same = images.take(range(3)), images.take([0] * 6)
    assert margin.measure(few, few, training).reason == "3 images with known margin, 5 needed"
    assert margin.measure(same, same, training).reason == "all images ask for the same margin"
    with_lobulation = _set(TRAINING, 60, 0)
    with_lobulation.records = [
        ImageRecord(record.id, ratings={"lobulation": 1 + place % 5})
        for place, record in enumerate(with_lobulation.records)
    ]
    assert _measure("lobulation").measure(images, images, with_lobulation).reason == "lobulation is not asked for"
    assert FindingMeasure("f", "F", "margin", FindingReader([])).measure(few, few).reason == "no weights given"


def test_ratings_follow_the_prompts_when_those_are_exchanged() -> None:
    records = [ImageRecord("a", "p", ratings={"margin": 1}), ImageRecord("b", "q", ratings={"margin": 5})]
    images = ImageSet(SetKey("real", "real"), records, [])
    exchanged = images.with_prompts(["q", "p"], SetKey("control", "wrong"))
    assert [rating_of(record, "margin") for record in exchanged.records] == [5, 1]
    assert rating_of(ImageRecord("c"), "margin") is None
