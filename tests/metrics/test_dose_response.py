from __future__ import annotations

import numpy as np
import pytest
import torch

from nodule_plugin.data.image_set import DOSE, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.data.requests import dose_response
from nodule_plugin.metrics.attributes import FindingReader
from nodule_plugin.metrics.dose_response import dose_curves

START = {"sphericity": 4, "margin": 4, "texture": 5, "spiculation": 1, "calcification": 6}


class Painted:
    """Features in which two ratings are painted with noise."""

    id = name = fingerprint = "painted"
    unavailable: str | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("features are given")


def _rated(kind: str, count: int) -> ImageSet:
    """Images that show their margin and sphericity, of all codes."""
    draw = np.random.default_rng(len(kind))
    codes = draw.integers(1, 6, size=(count, 2))
    records = [
        ImageRecord(f"{i}", ratings={**START, "margin": int(m), "sphericity": int(s)}) for i, (m, s) in enumerate(codes)
    ]
    features = torch.from_numpy(codes + draw.normal(0, 0.3, codes.shape))
    return ImageSet(SetKey(kind, kind), records, [], {"painted": features})


@pytest.fixture(scope="module")
def curves() -> dict[str, object]:
    """Curves of a model that follows the margin, in one unit less, and no other rating."""
    draw = np.random.default_rng(0)
    records, rows = [], []
    for seed in range(6):
        for index, findings in enumerate(dose_response(START)):
            records.append(ImageRecord(f"{seed}-{index}", "", ratings=findings, seed=seed))
            rows.append([findings["margin"] - 1, 3.0])
    features = torch.tensor(rows) + torch.from_numpy(draw.normal(0, 0.2, (len(rows), 2)))
    images = ImageSet(SetKey(DOSE, "model", 5.0), records, [], {"painted": features})
    found = dose_curves(images, _rated(REAL, 80), _rated(TRAINING, 200), FindingReader([Painted()]))
    return {curve.rating: curve for curve in found}


def test_a_rating_that_moves_the_picture_is_told_from_one_that_does_not(curves) -> None:
    margin, sphericity = curves["margin"], curves["sphericity"]
    assert margin.codes == sphericity.codes == [1, 2, 3, 4, 5]
    assert margin.chains == 6
    assert margin.monotone
    assert margin.trend > 0.9
    assert margin.p_value < 0.001
    assert margin.change_ci95[0] > 1
    assert abs(sphericity.trend) < 0.5
    assert sphericity.p_value > 0.05
    assert sphericity.change_ci95[0] < 0 < sphericity.change_ci95[1]


def test_real_images_with_that_rating_stand_beside(curves) -> None:
    margin = curves["margin"]
    assert sum(margin.real_counts) == 80
    assert margin.real == sorted(margin.real)
    assert margin.real_change > margin.change
    assert all(low < value < high for value, (low, high) in zip(margin.read, margin.ci95))


def test_ratings_that_nothing_was_learnt_of_have_no_curve(curves) -> None:
    assert set(curves) == {"sphericity", "margin"}


@pytest.mark.parametrize("seeds", [3, 7])
def test_pictures_that_do_not_change_have_no_trend(seeds: int) -> None:
    """Equal images read equal whatever their place in the set: ranks must not be of last bits."""
    records = [
        ImageRecord(f"{seed}-{index}", "", ratings=findings, seed=seed)
        for seed in range(seeds)
        for index, findings in reversed(list(enumerate(dose_response(START))))  # what was learnt stands at the end
    ]
    draw = np.random.default_rng(0)
    by_seed = draw.normal(size=(seeds, 45))
    features = {"painted": torch.from_numpy(by_seed[[record.seed for record in records]])}
    images = ImageSet(SetKey(DOSE, "model", 5.0), records, [], features)
    rated = [_rated(kind, count) for kind, count in ((REAL, 30), (TRAINING, 60))]
    for images_of in rated:
        codes = images_of.features_of("painted").read()
        images_of.features = {
            "painted": torch.from_numpy(np.tile(codes, 23)[:, :45] + draw.normal(size=(len(codes), 45)))
        }
    for curve in dose_curves(images, *rated, FindingReader([Painted()])):
        assert (curve.trend, curve.trend_ci95, curve.change) == (0.0, [0.0, 0.0], 0.0)
        assert curve.p_value >= 0.5


def test_chains_of_other_codes_are_not_mixed() -> None:
    """Three seeds with margins 1 to 3, and as many chains of another texture with margins 3 to 5 of only two seeds."""
    records = [
        ImageRecord(f"{seed}-{texture}-{margin}", ratings={**START, "texture": texture, "margin": margin}, seed=seed)
        for texture, margins, seeds in ((5, (1, 2, 3), 3), (4, (3, 4, 5), 2))
        for seed in range(seeds)
        for margin in margins
    ]
    rows = torch.tensor([[record.ratings["margin"], 3.0] for record in records])
    images = ImageSet(SetKey(DOSE, "model", 5.0), records, [], {"painted": rows})
    curves = dose_curves(images, _rated(REAL, 80), _rated(TRAINING, 200), FindingReader([Painted()]))
    assert {curve.rating: (curve.codes, curve.chains) for curve in curves} == {"margin": ([1, 2, 3], 3)}


def test_too_few_seeds_make_no_curve() -> None:
    images = _rated(DOSE, 4)
    assert dose_curves(images, _rated(REAL, 20), _rated(TRAINING, 60), FindingReader([Painted()])) == []
