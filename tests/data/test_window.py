from __future__ import annotations

import numpy as np
import pytest

from nodule_plugin.data.window import hu_to_unit, unit_to_hu
from nodule_plugin.errors import InputError


def test_window_ends_and_middle() -> None:
    assert hu_to_unit(np.array([-2000, -1000, -300, 400, 3000])).tolist() == [-1, -1, 0, 1, 1]
    assert unit_to_hu(np.array([-1, 0, 1]), (-150, 250)).tolist() == [-150, 50, 250]


@pytest.mark.parametrize("window", [(-1000, 400), (-160, 240), (-1350.5, 150)])
def test_whole_hounsfield_units_survive_the_round_trip(window: tuple[float, float]) -> None:
    hu = np.arange(np.ceil(window[0]), np.floor(window[1]) + 1)
    assert np.array_equal(np.rint(unit_to_hu(hu_to_unit(hu, window), window)), hu)


@pytest.mark.parametrize("window", [(400, -1000), (0, 0), (1,), (0, 1, 2)])
def test_window_that_is_none(window: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="window_hu: two rising numbers"):
        hu_to_unit(np.zeros(1), window)
