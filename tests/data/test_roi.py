from __future__ import annotations

import math

import pytest

from nodule_plugin.data.roi import padding_fraction, roi_bounds
from nodule_plugin.errors import InputError


@pytest.mark.parametrize(
    ("centre", "spacing", "roi_mm", "bounds"),
    [
        ((10.0, 20.0), (1.0, 1.0), 5.0, (8, 13, 18, 23)),  # odd side: the centre pixel is in the middle
        ((10.5, 20.5), (1.0, 1.0), 4.0, (9, 13, 19, 23)),  # even side: the centre lies between two pixels
        ((10.0, 10.0), (1.0, 1.0), 4.0, (9, 13, 9, 13)),  # even side, whole centre: towards the higher index
        ((10.4, 10.6), (1.0, 1.0), 3.0, (9, 12, 10, 13)),
        ((10.0, 10.0), (0.5, 2.0), 10.0, (1, 21, 8, 13)),  # each axis its own spacing
        ((1.0, 1.0), (1.0, 1.0), 6.0, (-1, 5, -1, 5)),  # beyond the image
        ((7.0, 7.0), (1.0, 1.0), 0.1, (7, 8, 7, 8)),  # never empty
        ((7.0, 7.0), (1.0, 1.0), 2.5, (6, 9, 6, 9)),  # half up
        ((7.0, 7.0), (1.0, 1.0), 2.4, (7, 9, 7, 9)),
    ],
)
def test_bounds(
    centre: tuple[float, float], spacing: tuple[float, float], roi_mm: float, bounds: tuple[int, int, int, int]
) -> None:
    assert roi_bounds(centre, spacing, roi_mm) == bounds


@pytest.mark.parametrize(
    ("roi_mm", "step"),
    [(20_000, 0.7), (0, 0.7), (-1, 0.7), (math.nan, 0.7), (math.inf, 0.7), (20, 1e-6), (20, 0), (20, math.nan)],
)
def test_no_roi_is_larger_than_memory(roi_mm: float, step: float) -> None:
    with pytest.raises(InputError, match=rf"roi_mm: {roi_mm} with pixels of 0.7 x {step} mm; .* at most 8,192 pixels"):
        roi_bounds((10.0, 10.0), (0.7, step), roi_mm)


@pytest.mark.parametrize("centre", [10.0, 10.1, 10.25, 10.49, 10.5, 10.75, 10.99])
@pytest.mark.parametrize("roi_mm", [3.0, 4.0, 9.0, 10.0])
def test_no_other_place_is_nearer_to_the_centre(centre: float, roi_mm: float) -> None:
    start, stop, _, _ = roi_bounds((centre, 0.0), (1.0, 1.0), roi_mm)
    assert abs((start + stop - 1) / 2 - centre) <= 0.5


@pytest.mark.parametrize(
    ("bounds", "fraction"),
    [((0, 10, 0, 10), 0.0), ((-5, 5, 0, 10), 0.5), ((-5, 5, 5, 15), 0.75), ((20, 30, 0, 10), 1.0), ((2, 4, 2, 4), 0.0)],
)
def test_padding_fraction(bounds: tuple[int, int, int, int], fraction: float) -> None:
    assert padding_fraction(bounds, (10, 10)) == fraction
