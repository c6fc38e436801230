from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.beyond import CopyMeasure, CoverageMeasure
from nodule_plugin.metrics.coverage import manifold_coverage
from nodule_plugin.metrics.features import InceptionFeatures
from nodule_plugin.metrics.memorization import TrainingIndex, copy_threshold


def _points(count: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _smooth(count: int, seed: int, size: int = 64) -> list[torch.Tensor]:
    """Random smooth images: unlike each other, but not noise."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return list((images * 255).to(torch.uint8))


def _set(kind: str, images: list[torch.Tensor]) -> ImageSet:
    return ImageSet(SetKey(kind, kind), [ImageRecord(f"{kind}{i}") for i in range(len(images))], images)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_precision_and_recall_equal_torch_fidelity(spread: float) -> None:
    real, fake = _points(60, 0), _points(50, 1, spread)
    ours = manifold_coverage(real, fake, neighbours=3)
    precision, recall = calculate_precision_recall_full(fake, real, neighborhood=3)
    assert (ours.precision, ours.recall) == (pytest.approx(precision), pytest.approx(recall))


def test_the_shares_tell_collapse_from_poor_fidelity() -> None:
    real = _points(200, 0)
    equal, collapsed, wild = (manifold_coverage(real, _points(200, 1, spread)) for spread in (1.0, 0.1, 5.0))
    assert equal.density == pytest.approx(1, abs=0.25)
    assert equal.coverage > 0.9
    assert collapsed.precision > 0.95
    assert collapsed.coverage < equal.coverage / 2
    assert wild.precision < 0.5 < wild.recall
    assert manifold_coverage(real, real).coverage == 1


def test_too_few_images_for_a_neighbourhood() -> None:
    with pytest.raises(InputError, match="more than 5 images"):
        manifold_coverage(_points(5, 0), _points(20, 1))
    features = InceptionFeatures()
    features.weights = "w"
    sets = [_set(kind, _smooth(count, 0)) for kind, count in ((REAL, 4), (GENERATED, 9))]
    for images in sets:
        images.features = {"inception:w": _points(len(images), 0)}
    measure = CoverageMeasure("c", "Coverage", features, "coverage")
    assert measure.measure(sets[1], sets[0]).reason == "4 images, 6 needed"


def _disguised(image: torch.Tensor, seed: int) -> torch.Tensor:
    """Turned, flipped, paler and noisy: a copy all the same."""
    noise = 12 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image.rot90(seed % 4, (1, 2)).flip(2) * 0.7 + 40 + noise).clamp(0, 255).to(torch.uint8)


def test_planted_copies_are_found_and_named() -> None:
    training, held_out, fresh = _smooth(40, 0), _smooth(100, 1), _smooth(30, 2)
    copies = [_disguised(training[place], place) for place in range(10)]
    index = TrainingIndex(training)
    assert index.find(copies).place.tolist() == list(range(10))
    threshold = copy_threshold(index.find(held_out).likeness)
    assert (index.find(copies).likeness > threshold).all()
    measure = CopyMeasure("copies", "Copies", _set(TRAINING, training))
    value = measure.measure(_set(GENERATED, [*fresh, *copies]), _set(REAL, held_out))
    assert value.value == pytest.approx(0.25, abs=0.05)
    assert int(str(value.details["most_alike"]["image"]).removeprefix(GENERATED)) >= 30
    assert value.to_dict()["ci95"][0] > 0.1


def test_images_of_another_size_are_copies_too() -> None:
    training = _smooth(5, 0, size=64)
    larger = torch.nn.functional.interpolate(training[3][None].float(), (128, 128), mode="bilinear")[0]
    found = TrainingIndex(training).find([larger])
    assert found.place.tolist() == [3]
    assert found.likeness[0] > 0.99


def test_without_copies_the_interval_still_has_a_width() -> None:
    training, held_out = _smooth(20, 0), _smooth(100, 1)
    noise = list((torch.rand(20, 3, 64, 64) * 255).to(torch.uint8))
    value = CopyMeasure("copies", "Copies", _set(TRAINING, training)).measure(
        _set(GENERATED, noise), _set(REAL, held_out)
    )
    assert (value.value, value.standard_error) == (0.0, None)
    assert value.to_dict()["ci95"] == [0.0, pytest.approx(0.17, abs=0.02)]


def test_what_cannot_be_said_of_copies() -> None:
    images = _set(CONTROL, _smooth(3, 0))
    assert CopyMeasure("copies", "Copies").measure(images, images).reason == "no training images given"
    assert (
        CopyMeasure("copies", "Copies", _set(TRAINING, _smooth(3, 1))).measure(images, images).reason
        == "not an image of a model"
    )
    with pytest.raises(InputError, match="no training images"):
        TrainingIndex([])
    assert np.isclose(copy_threshold(np.arange(101.0)), 99)
