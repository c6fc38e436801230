"""Marks in whole numbers: found in whatever keeps them, however it is cut or turned, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nodule_plugin.provenance.codebook import PUBLIC, MarkKey, log10_p
from nodule_plugin.provenance.parity_mark import GENERATED, INSERTED, Lattice, ParityMark, detect_parity, rounded

BOTH = pytest.mark.parametrize("lattice", [INSERTED, GENERATED], ids=["inserted", "generated"])


def greys(side: int = 64) -> np.ndarray:
    """(1, side, side) values that nobody rounded yet."""
    return np.random.default_rng(7).uniform(0, 255, (1, side, side))


def marked(payload: str = "5f", side: int = 64) -> np.ndarray:
    """(1, side, side) greys with the public mark of generated images."""
    values = greys(side)
    return rounded(values, ParityMark(PUBLIC, payload, GENERATED).parity(values.shape), 0, 255)


@BOTH
def test_no_alarm_where_there_is_no_mark(lattice: Lattice) -> None:
    draw = np.random.default_rng(0)
    smooth = np.indices((6, 48, 48)).sum(0)
    for values in (draw.integers(-1000, 400, (6, 48, 48)), smooth, np.full((6, 48, 48), -1024), smooth // 2 * 2):
        assert not detect_parity(values, lattice, turned=True).found
    assert not detect_parity(draw.normal(size=(4, 32, 32)), lattice).possible
    assert not detect_parity(np.zeros((4, 64, 5)), lattice).possible


@BOTH
@pytest.mark.parametrize("turned", [False, True])
def test_p_values_are_no_smaller_than_chance_allows(lattice: Lattice, turned: bool) -> None:
    values = np.random.default_rng(1).integers(-1000, 400, (4, 24, 24))
    keys = [MarkKey(str(number), number.to_bytes(16, "big")) for number in range(60 if turned else 200)]
    chances = np.array([10 ** detect_parity(values, lattice, key, turned).log10_p for key in keys])
    assert (chances < 0.1).mean() < 0.15
    assert chances.min() > 1e-4


@pytest.mark.parametrize(
    ("lattice", "sites", "tried"),
    # Nine windows of 4 x 16 x 16 with 512 sites of the mark each, in 4096 shifts; one of 64 x 64 with 128, in as many.
    [(INSERTED, 512, 9 * 4096), (GENERATED, 128, 4096)],
)
def test_the_p_value_of_a_mark_that_is_all_there(lattice: Lattice, sites: int, tried: int) -> None:
    parity = np.maximum(ParityMark(PUBLIC, "5f", lattice).parity(lattice.tile), 0)
    found = detect_parity(parity, lattice)
    assert found.log10_p == pytest.approx(log10_p(math.sqrt(sites), 2 * tried))
    assert found.payload == "5f"
    assert found.inserted == (lattice is INSERTED)
    turned = detect_parity(parity, lattice, turned=True)
    assert turned.log10_p == pytest.approx(found.log10_p + math.log10(8))


def test_few_pixels_are_rounded_another_way_and_none_by_more_than_one() -> None:
    values = greys(256)
    parity = ParityMark(PUBLIC, "00", GENERATED).parity(values.shape)
    stored = rounded(values, parity, 0, 255)
    sites = np.zeros(values.shape, dtype=bool)
    sites[:, ::4, ::4] = True
    assert (parity[~sites] == -1).all()
    assert set(np.unique(parity[sites])) == {0, 1}
    assert np.array_equal(stored[~sites], np.rint(values)[~sites])
    assert np.array_equal(stored[sites] % 2, parity[sites])
    assert np.abs(stored - values).max() <= 1
    # Beside plain rounding: by one in a thirty-second of all pixels, which is 1 HU of a grey's 5.5.
    assert np.sqrt(np.mean((stored - np.rint(values)) ** 2)) == pytest.approx(0.18, abs=0.01)


def test_numbers_at_the_ends_stay_within_them() -> None:
    values = np.linspace(-20, 300, 64 * 64).reshape(1, 64, 64)
    stored = rounded(values, ParityMark(PUBLIC, "00", GENERATED).parity(values.shape), 0, 255)
    assert (stored.min(), stored.max()) == (0, 255)
    assert {0, 1, 254, 255} <= set(np.unique(stored[:, ::4, ::4]))
    assert np.array_equal(rounded(values, np.full(values.shape, -1), 0, 255), np.clip(np.rint(values), 0, 255))


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_part_that_was_turned_carries_the_mark(quarters: int, mirrored: bool) -> None:
    picture = np.rot90(marked()[:, 5:56, 9:60], quarters, (1, 2))
    found = detect_parity(picture[..., ::-1] if mirrored else picture, GENERATED, turned=True)
    assert found.found
    assert found.payload == "5f"
    assert not found.inserted


@pytest.mark.parametrize("side", [44, 47, 53])
def test_small_parts_of_odd_sizes_carry_the_mark(side: int) -> None:
    assert detect_parity(marked()[:, 3 : 3 + side, 8 : 8 + side], GENERATED, turned=True).found


def test_marks_of_one_kind_are_not_those_of_the_other() -> None:
    assert not detect_parity(marked(), INSERTED, turned=True).found
    assert not detect_parity(marked(), GENERATED, MarkKey("other", bytes(16)), turned=True).found


def test_numbers_that_changed_in_places_still_carry_the_mark() -> None:
    draw = np.random.default_rng(3)
    picture = marked()
    changed = np.where(draw.uniform(size=picture.shape) < 0.2, draw.integers(0, 256, picture.shape), picture)
    assert detect_parity(changed, GENERATED, turned=True).found


def test_a_part_of_a_large_image_carries_the_mark() -> None:
    assert detect_parity(marked(side=512)[:, 130:333, 17:200], GENERATED, turned=True).found
