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
from nodule_plugin.metrics.memorization import (
    GREY_VALUES,
    CopyDetector,
    FittedIndex,
    Rate,
    TrainingIndex,
    attack_result,
    copy_threshold,
    nearness,
    orientations,
    planted_copies,
)
from nodule_plugin.metrics.studies import run_studies


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
    assert found.nearest[GREY_VALUES].place[20:].tolist() == sources.tolist()
    assert found.copies[20:].mean() >= 0.9
    assert found.copies[:20].mean() <= 0.1


def test_the_detector_states_its_errors(detector: CopyDetector) -> None:
    assert detector.misses.count == 20
    assert detector.misses.share <= 0.1
    assert detector.false_alarms.count == 50
    assert detector.false_alarms.share <= 0.1
    low, high = detector.false_alarms.interval
    assert low <= detector.false_alarms.share < high
    assert (Rate(0, 20).share, Rate(0, 20).interval) == (0.0, (0.0, pytest.approx(0.168, abs=0.001)))


def test_the_fit_finds_copies_that_plain_correlation_misses() -> None:
    training = _smooth(12, 0)
    shifted = [torch.roll(image, (4, 3), (1, 2)) for image in training]
    plain, fitted = TrainingIndex(training).find(shifted), FittedIndex(training).find(shifted)
    assert fitted.place.tolist() == list(range(12))
    assert fitted.likeness.mean() > plain.likeness.mean() + 0.1


def test_the_likeness_that_finds_planted_copies_is_chosen() -> None:
    training, held_out = _smooth(20, 0), _smooth(30, 1)

    def blind(images):
        """The same for all images: never tells a copy."""
        return np.ones((len(list(images)), 2))

    chosen = CopyDetector.calibrate(training, held_out, blind, planted=10)
    assert list(chosen.thresholds) == [GREY_VALUES]
    assert chosen.missed_by["embedding"].share == 1.0
    assert set(chosen.held_out) == {GREY_VALUES, "embedding"}


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
    assert handed_out.own_nearest.share == 1.0
    assert handed_out.own_rank > 0.95
    innocent = attack_result(detector, _smooth(8, 9), sources)
    assert innocent.own_nearest.share < 0.5
    assert abs(innocent.own_rank - 0.5) < 0.3
    assert innocent.chance_nearest == 1 / 30


def test_images_of_another_size_are_copies_too() -> None:
    training = _smooth(5, 0, size=64)
    larger = torch.nn.functional.interpolate(training[3][None].float(), (128, 128), mode="bilinear")[0]
    found = FittedIndex(training).find([larger])
    assert found.place.tolist() == [3]
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
