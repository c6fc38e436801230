from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.frechet import (
    Gaussian,
    condensed,
    distance_of_gaussians,
    extrapolate_frechet_distance,
    fit_gaussian,
    frechet_distance,
    frechet_error,
    gaussian_of_rows,
    with_weight,
)
from nodule_plugin.metrics.two_samples import half_sample_error

DIMENSIONS = 24
_DRAW = np.random.default_rng(0)
MIXING = _DRAW.normal(size=(DIMENSIONS, DIMENSIONS)) / 5
OTHER = MIXING + 0.06 * _DRAW.normal(size=(DIMENSIONS, DIMENSIONS))


def _pair(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    first, second = draw.normal(size=(2, count, DIMENSIONS))
    return first @ MIXING, second @ OTHER + 0.1


def _truth() -> float:
    return distance_of_gaussians(Gaussian(np.zeros(DIMENSIONS), MIXING), Gaussian(np.full(DIMENSIONS, 0.1), OTHER))


def test_extrapolation_finds_the_value_for_endless_sets() -> None:
    found = [extrapolate_frechet_distance(*_pair(150, seed), seed=seed) for seed in range(12)]
    plain = np.mean([frechet_distance(*_pair(150, seed)) for seed in range(12)])
    values = np.array([entry.value for entry in found])
    error = values.std(ddof=1)
    assert plain > _truth() + 3 * error  # what there is to correct
    assert abs(values.mean() - _truth()) < 3 * error / np.sqrt(len(values)) + 0.05 * _truth()
    assert np.mean([entry.error for entry in found]) == pytest.approx(error, rel=0.7)
    assert len(found[0].sizes) == len(found[0].distances) == 15


def test_too_few_images_are_not_extrapolated() -> None:
    with pytest.raises(InputError, match="at least twice as many images as features"):
        extrapolate_frechet_distance(*_pair(40, 0))


def test_delta_method_and_jackknife_agree_with_repeated_experiments() -> None:
    repeated = np.std([frechet_distance(*_pair(400, seed)) for seed in range(40)], ddof=1)
    delta = np.mean([frechet_error(*_pair(400, seed)) for seed in range(4)])
    jackknife = np.mean([half_sample_error(frechet_distance, *_pair(400, seed), repeats=30) for seed in range(4)])
    assert delta == pytest.approx(repeated, rel=0.35)
    assert jackknife == pytest.approx(repeated, rel=0.5)


def test_few_images_get_their_error_from_the_jackknife() -> None:
    pair = _pair(30, 0)
    assert frechet_error(*pair, repeats=10) == half_sample_error(frechet_distance, *pair, repeats=10)
    assert np.isnan(frechet_error(*(rows[:3] for rows in pair)))


@pytest.mark.parametrize("count", [10, 200])
def test_condensed_and_joined_rows_are_the_whole(count: int) -> None:
    whole, other = _pair(count, 0)
    parts = [condensed(with_weight(part)) for part in (whole[: count // 3], whole[count // 3 :])]
    joined = gaussian_of_rows(condensed(np.concatenate(parts)))
    fitted = fit_gaussian(FeatureRows(whole))
    assert joined.mean == pytest.approx(fitted.mean)
    assert joined.root.T @ joined.root == pytest.approx(fitted.root.T @ fitted.root)
    assert len(condensed(with_weight(whole))) <= DIMENSIONS + 1
    distance = distance_of_gaussians(joined, fit_gaussian(FeatureRows(other)))
    assert distance == pytest.approx(frechet_distance(whole, other))


@pytest.mark.parametrize("dead", ["constant", "repeated", "nearly repeated"])
def test_features_without_spread_of_their_own_do_no_harm(dead: str) -> None:
    whole, other = _pair(400, 0)
    tiny = 1e-9 * np.random.default_rng(1).normal(size=(400, 1))
    column = {"constant": np.ones((400, 1)), "repeated": whole[:, :1], "nearly repeated": whole[:, :1] + tiny}[dead]
    padded = np.concatenate([whole, column], axis=1), np.concatenate([other, column], axis=1)
    root = fit_gaussian(FeatureRows(padded[0])).root
    assert root.T @ root == pytest.approx(np.cov(padded[0], rowvar=False), abs=1e-12)
    assert frechet_distance(padded[0], padded[0]) < 1e-9
    statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in padded]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*padded) == pytest.approx(theirs, rel=1e-4)
    assert frechet_error(*padded, repeats=3) == half_sample_error(frechet_distance, *padded, repeats=3)


def test_identical_sets_have_no_distance_in_many_dimensions() -> None:
    features = np.random.default_rng(0).normal(size=(40, 2048))
    assert frechet_distance(features, features) < 1e-8


@pytest.mark.parametrize(
    ("rows", "message"), [(np.ones((1, 3)), "1 image, 2 needed"), (np.full((4, 3), np.nan), "not finite")]
)
def test_unusable_rows_are_named(rows: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gaussian_of_rows(rows)
