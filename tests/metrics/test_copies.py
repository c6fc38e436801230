from __future__ import annotations

import numpy as np
import pytest
import torch

from nodule_plugin.data.image_set import CONTROL, GENERATED, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.metrics import memorization
from nodule_plugin.metrics.copies import CopyMeasure
from nodule_plugin.metrics.intervals import Rate
from nodule_plugin.metrics.likeness import FittedIndex, TrainingIndex, orientations
from nodule_plugin.metrics.memorization import (
    GREY_VALUES,
    CopyDetector,
    attack_result,
    copy_threshold,
    nearness,
)
from nodule_plugin.metrics.planted_copies import planted_copies
from nodule_plugin.metrics.studies import run_studies


def _smooth(count: int, seed: int, size: int = 64) -> list[torch.Tensor]:
    """Random smooth images: unlike each other, but not noise."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return list((images * 255).to(torch.uint8))


def _set(kind: str, images: list[torch.Tensor]) -> ImageSet:
    return ImageSet(SetKey(kind, kind), [ImageRecord(f"{kind}{i}") for i in range(len(images))], images)


@pytest.fixture(scope="module")
def detector() -> CopyDetector:
    return CopyDetector.calibrate(_smooth(30, 0), _smooth(50, 1), planted=20)


def test_orientations_are_the_eight_of_a_square() -> None:
    views = orientations(torch.arange(27).reshape(3, 3, 3))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert torch.equal(views[0], torch.arange(27).reshape(3, 3, 3))


def test_planted_copies_are_found_and_named(detector: CopyDetector) -> None:
    training = _smooth(30, 0)
    copies = list(planted_copies(training, 20, seed=7))
    sources = np.random.default_rng(7).integers(30, size=20)
    found = detector.inspect([*_smooth(20, 2), *copies])
    assert found.nearest[GREY_VALUES].index[20:].tolist() == sources.tolist()
    assert found.copies[20:].mean() >= 0.9
    assert found.copies[:20].mean() <= 0.1


def test_the_detector_states_its_errors(detector: CopyDetector) -> None:
    assert detector.misses.count == 20
    assert detector.misses.fraction <= 0.1
    assert detector.false_alarms.count == 50
    assert detector.false_alarms.fraction <= 0.1
    low, high = detector.false_alarms.to_dict()["ci95"]
    assert low <= detector.false_alarms.fraction < high
    assert Rate(0, 20).to_dict() == {
        "hits": 0,
        "count": 20,
        "share": 0.0,
        "ci95": [0.0, pytest.approx(0.168, abs=0.001)],
    }


def test_the_fit_finds_copies_that_plain_correlation_misses() -> None:
    training = _smooth(12, 0)
    shifted = [torch.roll(image, (4, 3), (1, 2)) for image in training]
    plain, fitted = TrainingIndex(training).find(shifted), FittedIndex(training).find(shifted)
    assert fitted.index.tolist() == list(range(12))
    assert fitted.likeness.mean() > plain.likeness.mean() + 0.1


def test_the_likeness_that_finds_planted_copies_is_chosen() -> None:
    training, held_out = _smooth(20, 0), _smooth(30, 1)

    def blind(images):
        """The same for all images: never tells a copy."""
        return np.ones((len(list(images)), 2))

    chosen = CopyDetector.calibrate(training, held_out, blind, planted=10)
    assert list(chosen.thresholds) == [GREY_VALUES]
    assert chosen.missed_by["embedding"].fraction == 1.0
    assert set(chosen.held_out) == {GREY_VALUES, "embedding"}


def test_misses_are_counted_on_copies_that_chose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training, unlike = _smooth(8, 0), _smooth(4, 9)
    monkeypatch.setattr(memorization, "planted_copies", lambda images, count, seed: [*images[:4], *unlike])
    detector = CopyDetector.calibrate(training, _smooth(8, 1), planted=4)
    assert (detector.misses.hits, detector.misses.count) == (4, 4)


def test_copies_are_a_column_with_the_detectors_rates() -> None:
    training, held_out = _smooth(20, 0), _smooth(30, 1)
    copies = list(planted_copies(training, 5, seed=3))
    sets = [_set(GENERATED, [*_smooth(15, 2), *copies]), _set(REAL, held_out), _set(TRAINING, training)]
    measure = CopyMeasure("copies", "Copies", planted=10)
    value = measure.measure(*sets)
    assert value.value == pytest.approx(0.25, abs=0.1)
    assert int(str(value.details["most_alike (grey values)"]["image"]).removeprefix(GENERATED)) >= 15
    assert value.to_dict()["ci95"][0] > 0.05
    assert 0 <= value.details["miss_rate"] < 0.2
    clean = measure.measure(_set(GENERATED, _smooth(20, 5)), *sets[1:])
    assert clean.value == 0.0
    assert clean.to_dict()["ci95"] == [0.0, pytest.approx(0.17, abs=0.02)]


def test_images_of_training_patients_calibrate_no_detector() -> None:
    training, seen, fake = (_set(kind, _smooth(6, 0)) for kind in (TRAINING, REAL, GENERATED))
    for images in (training, seen):
        images.records = [ImageRecord(f"{i}", patient_id=f"patient {i}") for i in range(6)]
    measure = CopyMeasure("copies", "Copies", planted=5)
    assert measure.measure(fake, seen, training).reason == "6 of 6 real images are of training patients"
    assert run_studies([training, seen, fake], [measure])["memorization"] is None


def test_nearness_is_the_chance_of_being_nearer() -> None:
    draw = np.random.default_rng(0)
    usual = draw.normal(size=400)
    same, nearer = nearness(draw.normal(size=300), usual), nearness(usual[:300] + 1, usual)
    assert abs(same.chance - 0.5) < 3 * same.error
    assert nearer.chance == pytest.approx(0.76, abs=0.05)
    assert same.error == pytest.approx(0.022, abs=0.003)
    assert nearer.quantiles["0.50"] == pytest.approx(usual.mean() + 1, abs=0.2)


def test_an_attack_tells_a_model_that_hands_out_its_images(detector: CopyDetector) -> None:
    training = _smooth(30, 0)
    sources = list(np.random.default_rng(7).integers(30, size=8))
    handed_out = attack_result(detector, list(planted_copies(training, 8, seed=7)), sources)
    assert handed_out.own_nearest.fraction == 1.0
    assert 0.95 < handed_out.own_rank <= 1
    innocent = attack_result(detector, _smooth(8, 9), sources)
    assert innocent.own_nearest.fraction < 0.5
    assert abs(innocent.own_rank - 0.5) < 0.3
    assert innocent.chance_nearest == 1 / 30


def test_images_of_another_size_are_copies_too() -> None:
    training = _smooth(5, 0, size=64)
    larger = torch.nn.functional.interpolate(training[3][None].float(), (128, 128), mode="bilinear")[0]
    found = FittedIndex(training).find([larger])
    assert found.index.tolist() == [3]
    assert found.likeness[0] > 0.99


def test_what_cannot_be_said_of_copies() -> None:
    images, training = _set(CONTROL, _smooth(3, 0)), _set(TRAINING, _smooth(3, 1))
    measure = CopyMeasure("copies", "Copies")
    assert measure.measure(images, images).reason == "no training images given"
    assert measure.measure(images, images, training).reason == "not an image of a model"
    one = _set(REAL, _smooth(1, 0))
    assert measure.measure(one, one, training).reason == "1 real image, 2 needed"
    with pytest.raises(InputError, match="no training images"):
        TrainingIndex([])
    with pytest.raises(InputError, match="1 held-out real image"):
        CopyDetector.calibrate(training.images, one.images)
    assert np.isclose(copy_threshold(np.arange(101.0)), 99)
    both = dict.fromkeys(("one", "other"), np.arange(101.0))
    shared = memorization._thresholds(both, list(both), 0.1)
    assert shared == {"one": pytest.approx(95), "other": pytest.approx(95)}  # 5 % each
