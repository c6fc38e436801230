from __future__ import annotations

import numpy as np
import pytest
import torch

from nodule_plugin.data.image_set import GENERATED, REAL, ImageRecord, ImageSet, SetKey
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.grey_values import BINS, GreyValueFeatures, grey_value_curves, histogram
from nodule_plugin.metrics.studies import run_studies

WINDOW = (-1000, 400)


def _noise(count: int, sigma_hu: float, mean_hu: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean_hu, sigma_hu, (count, 64, 64))


def _set(kind: str, hu: np.ndarray) -> ImageSet:
    images = torch.from_numpy((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * 2 - 1).float()
    features = GreyValueFeatures(WINDOW)(images[:, None].repeat(1, 3, 1, 1))
    records = [ImageRecord(f"{kind}{number}") for number in range(len(hu))]
    return ImageSet(SetKey(kind, kind), records, list(images), {GreyValueFeatures(WINDOW).id: features})


def test_the_histogram_counts_pixels_by_hounsfield_units() -> None:
    hu = np.array([[[-1000.0, -951.0], [-950.0, 2000.0]]])
    (shares,) = histogram(hu, WINDOW)
    assert shares[:2].tolist() == [0.5, 0.25]
    assert shares[-1] == 0.25
    assert shares.sum() == 1


def test_the_distance_is_how_far_pixels_moved() -> None:
    (measure,) = Distances()(GreyValueFeatures(WINDOW), "hu_histogram")
    real = _set(REAL, _noise(40, 100.0, -500.0, 0))
    same, shifted = (measure.measure(_set(GENERATED, _noise(40, 100.0, mean, 1)), real) for mean in (-500.0, -400.0))
    assert shifted.value == pytest.approx(100, abs=3)
    assert same.value is not None
    assert same.value < 10
    assert same.standard_error is not None


def test_the_curves_of_real_and_generated_images_are_reported() -> None:
    sets = [_set(GENERATED, _noise(5, 50.0, 0.0, 0)), _set(REAL, _noise(6, 50.0, 0.0, 1))]
    found = run_studies(sets, Distances()(GreyValueFeatures(WINDOW), "hu_histogram"))["grey_values"]
    assert [curves["model"] for curves in found["sets"]] == [REAL, GENERATED]
    assert found["hu"][0] == -975
    for curves in found["sets"]:
        assert len(curves["histogram"]) == BINS
        assert sum(curves["histogram"]) == pytest.approx(1)
    assert grey_value_curves(sets[0].take([0]), GreyValueFeatures(WINDOW).id)["histogram_ci95"][0][0] >= 0
