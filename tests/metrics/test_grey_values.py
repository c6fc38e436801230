from __future__ import annotations

import numpy as np
import pytest
import torch

from nodule_plugin.data.image_set import GENERATED, REAL, ImageRecord, ImageSet, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.grey_values import (
    BANDS,
    BINS,
    GreyValueFeatures,
    grey_value_curves,
    histogram,
    power_spectrum,
)
from nodule_plugin.metrics.measures import Value
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


def test_white_noise_has_a_flat_spectrum_at_its_variance() -> None:
    found = power_spectrum(_noise(200, 20.0, 50.0, 0), floor=0.0).mean(axis=0)
    # Averaging decibels of a few cells lies below the decibels of the average: bands with many cells show the level.
    np.testing.assert_allclose(found[4:], 20 * np.log10(20), atol=0.35)


def test_a_slope_is_no_texture() -> None:
    slope = np.mgrid[:64, :64].sum(axis=0)[None] * 3.0
    assert power_spectrum(slope, floor=1e-6).max() < -50


def test_a_wave_lies_in_its_band() -> None:
    wave = 100 * np.sin(2 * np.pi * 0.2 * np.arange(64))[None, None, :].repeat(64, axis=1)
    assert power_spectrum(wave, floor=1e-3).argmax() == int(0.2 * 2 * BANDS)


def test_small_or_oblong_images_are_refused() -> None:
    for shape in ((1, 16, 16), (1, 64, 32)):
        with pytest.raises(InputError, match="square images of 32 pixels or more"):
            power_spectrum(np.zeros(shape), 1.0)


def _distances(fake: ImageSet, real: ImageSet) -> tuple[Value, Value]:
    of_histogram, of_spectrum = Distances()(GreyValueFeatures(WINDOW), "hu_histogram", "power_spectrum")
    return of_histogram.measure(fake, real), of_spectrum.measure(fake, real)


def test_distances_tell_a_shift_from_another_noise() -> None:
    real = _set(REAL, _noise(40, 100.0, -500.0, 0))
    same = _distances(_set(GENERATED, _noise(40, 100.0, -500.0, 1)), real)
    shifted = _distances(_set(GENERATED, _noise(40, 100.0, -400.0, 2)), real)
    smoother = _distances(_set(GENERATED, _noise(40, 50.0, -500.0, 3)), real)
    assert shifted[0].value == pytest.approx(100, abs=3)
    assert smoother[1].value == pytest.approx(20 * np.log10(2), abs=0.3)
    for value, larger in zip(same, (shifted[0], smoother[1])):
        assert value.value is not None
        assert larger.value is not None
        assert value.value < larger.value / 10
        assert value.standard_error is not None


def test_the_curves_of_real_and_generated_images_are_reported() -> None:
    sets = [_set(GENERATED, _noise(5, 50.0, 0.0, 0)), _set(REAL, _noise(6, 50.0, 0.0, 1))]
    found = run_studies(sets, Distances()(GreyValueFeatures(WINDOW), "hu_histogram"))["grey_values"]
    assert [curves["model"] for curves in found["sets"]] == [REAL, GENERATED]
    assert found["hu"][0] == -975
    assert found["cycles_per_pixel"][-1] == pytest.approx(0.5 - 0.25 / BANDS)
    for curves in found["sets"]:
        assert len(curves["histogram"]) == BINS
        assert sum(curves["histogram"]) == pytest.approx(1)
        assert all(low <= value <= high for value, (low, high) in zip(curves["spectrum"], curves["spectrum_ci95"]))
    assert grey_value_curves(sets[0].take([0]), GreyValueFeatures(WINDOW).id)["histogram_ci95"][0][0] >= 0
