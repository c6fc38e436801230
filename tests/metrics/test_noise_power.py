from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import sem

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.data.image_set import GENERATED, REAL, ImageRecord, ImageSet, SetKey
from nodule_plugin.data.window import hu_to_unit
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.measures import Value
from nodule_plugin.metrics.noise_power import (
    PER_MM,
    RINGS,
    NoisePowerFeatures,
    mean_power,
    noise_power_distance,
    region_sizes,
    ring_powers,
    sized_powers,
)
from nodule_plugin.metrics.studies import run_studies

WINDOW = (-1000, 400)
EXTRACTOR = NoisePowerFeatures(WINDOW)
SIDE_MM, NATIVE = 20.0, 32.0


def _noise(count: int, sigma_hu: float, seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).normal(-300, sigma_hu, (count, side, side))


def _set(
    kind: str,
    hu: np.ndarray,
    roi_mm: float | None = SIDE_MM,
    native: float | None = NATIVE,
    sources: Sequence[str] = (),
) -> ImageSet:
    images = torch.from_numpy(hu_to_unit(hu, WINDOW))[:, None].expand(-1, 3, -1, -1)
    records = [
        ImageRecord(
            f"{kind}{n}", source_id=sources[n % len(sources)] if sources else None, roi_mm=roi_mm, native_pixels=native
        )
        for n in range(len(hu))
    ]
    return ImageSet(SetKey(kind, kind), records, list(images), {EXTRACTOR.id: EXTRACTOR(images)})


def _difference(fake: ImageSet, real: ImageSet) -> Value:
    (measure,) = Distances()(EXTRACTOR, "noise_power")
    return measure.measure(fake, real)


@pytest.mark.parametrize(("side", "side_mm"), [(64, 20.0), (64, 45.0), (32, 12.8), (128, 20.0)])
def test_white_noise_has_the_power_of_its_variance_and_pixel_size(side: int, side_mm: float) -> None:
    sigma, pixel_mm = 30.0, side_mm / side
    real = _set(REAL, _noise(60, sigma, 0, side), side_mm, native=float(side))
    power, counts = mean_power(sized_powers(real, real, EXTRACTOR.id).read())
    rings = ring_powers(_noise(60, sigma, 0, side)) * side_mm**2
    resolved = np.arange(5, min(side // 2, RINGS)) - 1
    assert rings[:, resolved].mean() == pytest.approx(sigma**2 * pixel_mm**2, rel=0.02)
    # Below, the plane that was taken off is missed, and the logarithm of a mean of few frequencies lies lower.
    inside = (4 / side_mm < PER_MM) & (min(side / 2, RINGS) / side_mm >= PER_MM)
    assert inside.sum() >= 8
    assert (counts[inside] == 60).all()
    np.testing.assert_allclose(power[inside], sigma**2 * pixel_mm**2, rtol=0.15)
    assert power[inside].mean() == pytest.approx(sigma**2 * pixel_mm**2, rel=0.05)


def test_the_pixels_of_one_scan_give_one_curve_whatever_the_region_shows() -> None:
    """Noise of a scan is the same per mm in a small region and in a large one: what cycles a pixel would not say."""
    scan = _noise(40, 30.0, 0, 64)
    small, large = _set(REAL, scan[:, :32, :32], 16.0, 32.0), _set(REAL, scan, 32.0, 64.0)
    (one, _), (other, _) = (mean_power(sized_powers(images, images, EXTRACTOR.id).read()) for images in (small, large))
    both = np.isfinite(one) & np.isfinite(other) & (PER_MM > 0.2)
    np.testing.assert_allclose(one[both], other[both], rtol=0.12)


def test_a_slope_is_no_texture_and_a_wave_lies_at_its_frequency() -> None:
    slope = np.mgrid[:64, :64].sum(axis=0)[None] * 3.0
    assert ring_powers(slope).max() < 1e-10
    # Grey levels 1400 / 255 HU apart: rounding to steps has a variance of a twelfth of their square.
    np.testing.assert_allclose(EXTRACTOR(torch.zeros(1, 3, 64, 64)), (1400 / 255) ** 2 / 12 / 64**2, rtol=1e-6)
    wave = 100 * np.sin(2 * np.pi * 13 / 64 * np.arange(64))[None, None, :].repeat(64, axis=1)
    assert ring_powers(wave).argmax() == 13 - 1
    # A constant amplitude has power A²/2 over the area of frequencies that it spreads over: summed up, all of it.
    cells = np.rint(np.hypot(*np.meshgrid(*[np.fft.fftfreq(64, 1 / 64)] * 2)))
    in_ring = np.array([(cells == number).sum() for number in range(1, RINGS + 1)])
    assert (ring_powers(wave)[0] * in_ring).sum() == pytest.approx(100**2 / 2, rel=0.02)


def test_an_image_does_not_count_beyond_its_native_nyquist_frequency_nor_below_one_cycle() -> None:
    powers = sized_powers(*[_set(REAL, _noise(3, 30.0, 0), 10.0, 14.0)] * 2, EXTRACTOR.id).read()
    counted = (powers > 0).all(axis=0)
    assert PER_MM[counted][[0, -1]] == pytest.approx([0.1, 0.7])  # 1 and 14 / 2 cycles in 10 mm
    assert not (powers > 0).any(axis=0)[~counted].any()


def test_small_or_oblong_images_are_refused() -> None:
    for shape in ((1, 3, 3), (1, 64, 32)):
        with pytest.raises(InputError, match="square images of 4 pixels or more"):
            ring_powers(np.zeros(shape))


def test_the_difference_is_the_ratio_in_decibel() -> None:
    real = _set(REAL, _noise(40, 60.0, 0))
    same, smoother = (_difference(_set(GENERATED, _noise(40, sigma, 1)), real) for sigma in (60.0, 30.0))
    assert smoother.value == pytest.approx(20 * np.log10(2), abs=0.2)
    assert same.value is not None
    assert same.value < 0.6  # by chance, of 40 images
    assert smoother.standard_error is not None
    assert 0 < smoother.standard_error < 0.3


def test_a_frequency_counts_as_often_as_images_do_where_they_are_fewer() -> None:
    """10 dB at the first, which 4 images of either set have; none at the second (4 and 2); the third has but one."""
    fake = np.array([[10.0, 1, 1000], [10, 1, 0], [10, 0, 0], [10, 0, 0]])
    assert noise_power_distance(FeatureRows(np.ones((4, 3))), FeatureRows(fake)) == pytest.approx(np.sqrt(400 / 6))


def test_what_interpolation_left_beyond_the_native_nyquist_frequency_moves_nothing() -> None:
    hu = _noise(30, 60.0, 0)
    spectrum = np.fft.fft2(hu)
    cycles = np.hypot(*np.meshgrid(*[np.fft.fftfreq(64, 1 / 64)] * 2))
    blurred = np.fft.ifft2(np.where(cycles > 20, 0.0, spectrum)).real
    counted = _difference(_set(GENERATED, blurred, native=64.0), _set(REAL, hu, native=64.0)).value
    beyond = _difference(_set(GENERATED, blurred, native=32.0), _set(REAL, hu, native=32.0)).value
    assert counted is not None
    assert beyond is not None
    assert counted > 5
    assert beyond < 0.3


def test_generated_images_take_their_size_from_where_it_is_known() -> None:
    real = _set(REAL, _noise(3, 30.0, 0), 16.0, 32.0)
    by_source = region_sizes(_set(GENERATED, _noise(2, 30.0, 1), 20.0, None, ["real1", "real2"]), real)
    stated = region_sizes(_set(GENERATED, _noise(2, 30.0, 1), 20.0, None, ["unknown"]), real)
    unknown = region_sizes(_set(GENERATED, _noise(5, 30.0, 1), None, None), real)
    for sizes, side, native in ((by_source, 16.0, 32.0), (stated, 20.0, 40.0), (unknown, 16.0, 32.0)):
        assert sizes.side_mm is not None
        assert sizes.side_mm.tolist() == [side] * len(sizes.side_mm)
        assert sizes.native.tolist() == [native] * len(sizes.side_mm)
    assert [sizes.source.split()[0] for sizes in (by_source, stated, unknown)] == ["of", "as", "those"]


def test_curves_have_units_intervals_and_ratios() -> None:
    sets = [_set(GENERATED, _noise(8, 30.0, 0), None, None), _set(REAL, _noise(9, 60.0, 1))]
    found = run_studies(sets, Distances()(EXTRACTOR, "noise_power"))["noise_power"]
    assert (found["unit"], found["frequency_unit"]) == ("HU² mm²", "cycles / mm")
    assert found["frequency_per_mm"] == pytest.approx(np.arange(1, 17) * 0.05)  # from 1 / 20 mm to 16 / 20 mm
    assert found["frequency"] == found["frequency_per_mm"]
    assert [(curve["kind"], curve["images"][0]) for curve in found["sets"]] == [(REAL, 9), (GENERATED, 8)]
    for curve in found["sets"]:
        assert all(low < value < high for value, (low, high) in zip(curve["power"], curve["ci95"]))
    (ratio,) = found["ratio_db"]
    assert ratio["model"] == GENERATED
    assert np.mean(ratio["value"][4:]) == pytest.approx(-20 * np.log10(2), abs=0.3)
    assert sum(low < -20 * np.log10(2) < high for low, high in ratio["ci95"]) >= 12


def test_intervals_hold_the_truth_and_patients_count_once() -> None:
    truth = 30.0**2 * (SIDE_MM / 64) ** 2
    held = []
    for seed in range(20):
        real = _set(REAL, _noise(15, 30.0, seed))
        (curve,) = run_studies([real], Distances()(EXTRACTOR, "noise_power"))["noise_power"]["sets"]
        held += [low < truth < high for low, high in curve["ci95"][3:]]
    assert 0.88 < np.mean(held) < 0.98
    powers = sized_powers(real, real, EXTRACTOR.id).read()
    logarithms = np.log(powers[:, (powers > 0).all(axis=0)])
    middle, reach = logarithms.mean(axis=0), 1.959964 * sem(logarithms)
    np.testing.assert_allclose(np.log(curve["ci95"]).T, [middle - reach, middle + reach], rtol=1e-5)
    twice = real.take([*range(15), *range(15)])
    twice.records[:] = [ImageRecord(r.id, patient_id=r.id, roi_mm=SIDE_MM, native_pixels=NATIVE) for r in twice.records]
    (again,) = run_studies([twice], Distances()(EXTRACTOR, "noise_power"))["noise_power"]["sets"]
    np.testing.assert_allclose(again["ci95"], curve["ci95"])


def test_of_folders_whose_sizes_nobody_knows_sides_are_the_unit() -> None:
    sets = [_set(REAL, _noise(9, 30.0, 1), None, 40.0), _set(GENERATED, _noise(8, 30.0, 0), None, None)]
    found = run_studies(sets, Distances()(EXTRACTOR, "noise_power"))["noise_power"]
    assert (found["unit"], found["frequency_unit"]) == ("HU² side²", "cycles / side")
    assert found["frequency_per_mm"] == []
    assert found["frequency"] == list(range(1, 21))  # 40 pixels of the files were enlarged to 64
    assert np.mean(found["sets"][0]["power"][3:]) == pytest.approx(30.0**2 / 64**2, rel=0.05)


def test_no_common_frequency_is_said() -> None:
    fine, coarse = _set(REAL, _noise(3, 30.0, 0), 4.0, 4.0), _set(GENERATED, _noise(3, 30.0, 0), 40.0, 16.0)
    assert "no frequency at which 2 images" in str(_difference(coarse, fine).reason)
