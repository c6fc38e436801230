from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import GENERATED, REAL, ImageRecord, ImageSet, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.metrics import coverage
from nodule_plugin.metrics.coverage import manifold_coverage
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.features import InceptionFeatures


def _points(count: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _set(kind: str, features: torch.Tensor | FeatureRows) -> ImageSet:
    records = [ImageRecord(f"{kind}{i}") for i in range(len(features))]
    images = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(features)
    return ImageSet(SetKey(kind, kind), records, images, {"inception:w": features})


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
    few, many = _set(REAL, _points(4, 0)), _set(GENERATED, _points(9, 0))
    (measure,) = Distances()(features, "coverage")
    assert measure.measure(many, few).reason == "4 images, 6 needed"


def test_four_columns_come_from_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    features = InceptionFeatures()
    features.weights = "w"
    real, fake = (_set(kind, FeatureRows(_points(30, seed))) for seed, kind in enumerate((REAL, GENERATED)))
    measures = Distances(repeats=3)(features, "precision", "recall", "density", "coverage")
    counted = []

    def count(*arguments: Any) -> coverage.Coverage:
        counted.append(arguments)
        return manifold_coverage(*arguments)

    monkeypatch.setattr(coverage, "manifold_coverage", count)
    values = [measure.measure(fake, real) for measure in measures]
    expected = manifold_coverage(_points(30, 0), _points(30, 1))
    assert [value.value for value in values] == [
        *(expected.precision, expected.recall, expected.density, expected.coverage)
    ]
    assert all(value.standard_error is not None for value in values)
    assert len(counted) == 1 + 3  # the whole sets, and each of three halves
    assert [value.bounds for value in values] == [(0, 1), (0, 1), (0, math.inf), (0, 1)]
    assert {measure.scale.better for measure in measures} == {"higher"}


def test_a_fraction_of_all_has_the_exact_interval_of_what_it_counts() -> None:
    features = InceptionFeatures()
    features.weights = "w"
    points = _points(30, 0)
    real, fake = _set(REAL, points), _set(GENERATED, torch.cat([points, points[:20]]))
    for key, count in (("precision", 50), ("recall", 30), ("coverage", 30)):
        value = Distances(repeats=3)(features, key)[0].measure(fake, real)
        assert value.value == 1
        assert value.to_dict()["ci95"] == [pytest.approx(0.025 ** (1 / count)), 1]  # Clopper and Pearson of n of n


def test_too_few_images_for_halves_have_no_error() -> None:
    features = InceptionFeatures()
    features.weights = "w"
    value = Distances()(features, "coverage")[0].measure(_set(GENERATED, _points(8, 1)), _set(REAL, _points(8, 0)))
    assert value.value is not None
    assert value.standard_error is None


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_copies_and_duplicates_are_ties_in_any_order(scale: float) -> None:
    """An image lies within a reach that its own copy sets, whatever the last bits of the products say."""
    real = scale * (10 + _points(70, 0))
    real = torch.cat([real, real[:8].repeat(6, 1)])
    for seed in range(3):
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        found = manifold_coverage(real, real[order])
        assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
        # Every image lies in its own reach, in its neighbours' and in those of the copies among these.
        squared = (real[:, None] - real[None]).square().sum(2)
        reach = squared.sort(dim=1).values[:, 5]
        assert found.density == pytest.approx(
            float((squared <= reach[:, None] + 1e-6).sum()) / len(real) / 5, abs=1e-12
        )
