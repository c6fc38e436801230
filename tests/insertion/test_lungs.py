"""The lungs of a series, and how far places in them lie from their surface and from vessels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ct_hosts import PIXEL_MM, SIZE, write_host
from scipy.spatial.distance import cdist

from nodule_plugin.insertion.host import read_host
from nodule_plugin.insertion.lungs import Lungs, find_lungs, random_places

SPACING, STEP = np.array([2.5, 2.0, 3.0]), np.array([1, 4, 2])


def lungs_of(lung: np.ndarray, vessel: np.ndarray) -> Lungs:
    """On coarse voxels of :data:`SPACING`, each :data:`STEP` of the host's."""
    return Lungs(np.ones_like(lung), lung, np.zeros_like(lung), vessel, STEP, SPACING)


@pytest.mark.parametrize("vessel_mm", [0.0, 4.0])
def test_room_is_far_from_pleura_and_vessels(vessel_mm: float) -> None:
    lung, vessel = np.zeros((2, 6, 9, 10), dtype=bool)
    lung[:, 1:, 2:], vessel[2, 5, 6] = True, True
    inside = np.argwhere(lung)
    beyond = np.argwhere(~np.pad(lung, 1)) - 1  # the series' faces, too
    free = cdist(inside * SPACING, beyond * SPACING).min(1) > 5
    free &= (np.linalg.norm((inside - [2, 5, 6]) * SPACING, axis=1) > vessel_mm) | (vessel_mm == 0)
    middles = inside[free] * STEP + [0, 1.5, 0.5]
    np.testing.assert_array_equal(lungs_of(lung, vessel).room(5, vessel_mm), middles)
    assert len(middles) > 9


def test_random_places_are_apart_in_mm() -> None:
    lung = np.ones((9, 9, 9), dtype=bool)
    places = np.array(random_places(lungs_of(lung, lung), 6, 1.0, 1.0, 0.0, 9.0, seed=0))  # all vessels, which may be
    distances = np.linalg.norm((places[:, None] - places) * SPACING / STEP, axis=-1)
    assert distances[~np.eye(6, dtype=bool)].min() >= 9


def test_random_places_leave_room_for_the_nodule() -> None:
    lung, vessel = np.ones((9, 9, 9), dtype=bool), np.zeros((9, 9, 9), dtype=bool)
    vessel[4, 4, 0] = True
    lungs = lungs_of(lung, vessel)
    for seed in range(20):
        (place,) = random_places(lungs, 1, 4.0, 2.0, 3.0, 0.0, seed)
        assert (lungs.room(4.0 + 2.0, 4.0 + 3.0) == place).all(1).any()


def test_a_voxel_belongs_to_the_coarse_one_that_it_lies_in() -> None:
    lung = np.zeros((2, 3, 2), dtype=bool)
    lung[:, 1:] = True
    lungs = lungs_of(lung, ~lung)
    said = [lungs.objection(np.array([0, row, 0])) for row in (-0.6, -0.4, 3.4, 3.6, 11.4, 11.6)]
    assert said == ["outside the series", "not in the lung", "not in the lung", None, None, "outside the series"]
    assert lungs.covered(np.array([[0, 3, 0], [0, 4, 0], [1, 7, 3], [1, 8, 3]])) == 0.75


def test_what_is_lung(tmp_path: Path) -> None:
    y, x = np.mgrid[:SIZE, :SIZE] * PIXEL_MM - (SIZE - 1) / 2 * PIXEL_MM
    hu = np.repeat(np.where((x / 84) ** 2 + (y / 60) ** 2 < 1, 40.0, -1000.0)[None], 9, axis=0)
    for middle in (-30, 30):
        hu[:, ((x - middle) / 24) ** 2 + (y / 38) ** 2 < 1] = -860
    hu[:, np.hypot(x, y + 42) < 14] = -1000  # the trachea, 615 mm2
    hu[:, np.hypot(x - 68, y) < 8] = -900  # a bulla
    hu[3:5, np.hypot(x, y - 35) < 6] = -1000  # a bubble in the gullet
    hu[:, np.hypot(x + 54, y) < 8] = 40  # grown at the pleura
    hu[2:7, np.hypot(x - 30, y - 5) < 13] = 40  # a mass
    hu[7:, (x < 0) & (np.hypot(x + 30, y) > 10) & (np.abs(y) < 38.5)] = 40  # a lung's tip, thin as an airway
    write_host(tmp_path / "host", hu, step=(0, 0, 5.0))
    host = read_host(tmp_path / "host")
    lungs = find_lungs(host)
    for place, said in {
        (-30, 20): None,
        (0, -42): "in a large airway",
        (68, 0): None,
        (0, 35): "not in the lung",
        (-48, 0): None,
        (-60, 0): "not in the lung",
        (30, 5): None,
        (0, -80): "outside the body",
        (-30, 0, 20): None,
    }.items():
        assert lungs.objection(host.geometry.to_voxel((*place, 0.0)[:3])) == said, place
    slices, rows, columns = (host.geometry.to_voxel((30.0, 5.0, 0.0)) / lungs.step).astype(int)
    assert lungs.vessel[slices, rows, columns]
