from __future__ import annotations

import pytest
import torch

from nodule_plugin.data.image_set import GENERATED, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.metrics.attributes import FindingMeasure, rating_of


class Moments:
    """Mean and deviation of each image: enough to read a rating that is painted as brightness."""

    id = name = "moments"
    unavailable: str | None = None
    dim = 2

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
        ImageRecord(f"{kind}{i}", ratings={"margin": int(code), "texture": 5, "calcification": 6 if code > 2 else 3})
        for i, code in enumerate(codes)
    ]
    features = Moments()(torch.stack(images).float() / 127.5 - 1)
    return ImageSet(SetKey(kind, kind), records, images, {"moments": features} if kind != TRAINING else {})


@pytest.mark.parametrize("rating", ["margin", "calcification"])
def test_findings_that_are_shown_are_read_and_others_are_not(rating: str) -> None:
    measure = FindingMeasure("finding", "Finding", rating, Moments(), _set(TRAINING, 60, 0))
    obedient, wilful = _set(GENERATED, 60, 1), _set(GENERATED, 60, 1, obeys=False)
    shown, ignored = measure.measure(obedient, obedient), measure.measure(wilful, wilful)
    assert shown.value is not None
    assert shown.value > 0.8
    assert ignored.value is not None
    assert ignored.standard_error is not None
    assert abs(ignored.value) < 3 * ignored.standard_error
    assert shown.details["mean_error"] < ignored.details["mean_error"]


def test_what_cannot_be_read_says_why() -> None:
    training, images = _set(TRAINING, 60, 0), _set(GENERATED, 10, 1)
    features = Moments()
    assert FindingMeasure("f", "F", "margin", features).unavailable == "no training images given"
    assert FindingMeasure("f", "F", "texture", features, training).unavailable is not None
    assert FindingMeasure("f", "F", "margin", features, training.take(range(10))).unavailable is not None
    few = images.take(range(3))
    assert FindingMeasure("f", "F", "margin", features, training).measure(few, few).reason == (
        "3 images with known margin, 5 needed"
    )
    same = images.take([0] * 6)
    assert "the same margin" in str(FindingMeasure("f", "F", "margin", features, training).measure(same, same).reason)


def test_ratings_follow_the_prompts_when_those_are_exchanged() -> None:
    records = [ImageRecord("a", "p", ratings={"margin": 1}), ImageRecord("b", "q", ratings={"margin": 5})]
    images = ImageSet(SetKey("real", "real"), records, [])
    exchanged = images.with_prompts(["q", "p"], SetKey("control", "wrong"))
    assert [rating_of(record, "margin") for record in exchanged.records] == [5.0, 1.0]
    assert rating_of(ImageRecord("c"), "margin") is None
