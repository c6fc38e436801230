from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.files import write_text_atomically
from nodule_plugin.insertion.grid import Grid, on_grid, read_grid

GRID = Grid((2.0, 0.7, 0.7), (4, 12, 16), (-1024, 976))


def test_a_volume_of_the_grids_own_voxels_comes_back_as_it_is() -> None:
    volume = np.random.default_rng(0).normal(size=(4, 12, 16)).astype(np.float32)
    values, known = on_grid(volume, GRID.spacing_mm, (1.5, 5.5, 7.5), GRID)
    assert known.all()
    np.testing.assert_allclose(values, volume, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.25, 0.5, 0.9), (2.5, 0.98, 0.45)])
def test_places_in_mm_stay(spacing: tuple[float, float, float]) -> None:
    """A ramp along each axis is the same ramp on the grid, wherever its centre lies."""
    shape, centre = (30, 60, 70), (13.3, 31.2, 33.9)
    for axis in range(3):
        ramp = np.zeros(shape, np.float32)
        ramp += (np.arange(shape[axis]) * spacing[axis]).reshape([-1 if at == axis else 1 for at in range(3)])
        values, known = on_grid(ramp, spacing, centre, GRID)
        assert known.all()
        steps = np.arange(GRID.shape[axis]) - (GRID.shape[axis] - 1) / 2
        expected = centre[axis] * spacing[axis] + steps * GRID.spacing_mm[axis]
        others = tuple(at for at in range(3) if at != axis)
        np.testing.assert_allclose(values.mean(others), expected, atol=0.02)
        assert np.ptp(values, axis=others).max() < 0.01


def test_beyond_the_volume_nothing_is_known() -> None:
    volume = np.ones((2, 20, 20), np.float32)  # 2 slices of 2.5 mm: 5 mm, of which the grid has 8
    values, known = on_grid(volume, (2.5, 0.7, 0.7), (0.5, 9.5, 2.0), GRID)
    assert known.any((1, 2)).tolist() == [False, True, True, False]
    # Columns left of the volume's edge, 2.5 pixels from the centre, are not known; the volume's own values are.
    assert known[1].any(0).tolist() == [False] * 5 + [True] * 11
    assert (values[known] == 1).all()
    assert (values[~known] == 0).all()


def test_a_volume_elsewhere_gives_nothing() -> None:
    values, known = on_grid(np.ones((2, 20, 20), np.float32), (2.5, 0.7, 0.7), (90, 9.5, 9.5), GRID)
    assert not known.any()
    assert not values.any()


def test_a_grid_survives_its_file(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "grid.json", json.dumps(asdict(GRID)))
    assert read_grid(tmp_path / "grid.json") == GRID
    assert GRID.chain == "grid-cubic-1"
    (tmp_path / "grid.json").write_text('{"shape": [1, 2, 3]}')
    with pytest.raises(InputError, match=r"grid\.json: it does not describe a grid"):
        read_grid(tmp_path / "grid.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (4, 0, 16)}, "grid_shape"),
        ({"shape": (4, 12.5, 16)}, "grid_shape"),
        ({"spacing_mm": (2.0, 0.7)}, "grid_spacing_mm"),
        ({"window_hu": (400, -1000)}, "window_hu"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Grid(**{"spacing_mm": (2.0, 0.7, 0.7), "shape": (4, 12, 16), "window_hu": (-1000, 400)} | change)
