from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest


def test_curve_and_sensitivities_by_hand(script: Callable[[str], ModuleType]) -> None:
    froc = script("froc")
    hits = np.array([True, False, True, True, False, False])
    curve = froc.froc_curve(hits, np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.1]), scans=2, missed=1)
    assert np.stack(curve, axis=1).tolist() == [[0, 0], [0, 0.25], [0.5, 0.25], [0.5, 0.5], [1, 0.75], [1.5, 0.75]]
    assert froc.sensitivities(curve).tolist() == pytest.approx([0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75])
    nothing_false = froc.froc_curve(np.array([True]), np.array([0.5]), scans=1, missed=1)
    assert froc.sensitivities(nothing_false).tolist() == [0.5] * 7
