from __future__ import annotations

import numpy as np
import pytest

from nodule_plugin.metrics.froc import MOST_MARKS, froc_curve, match_marks, sensitivities

NONE = np.empty((0, 4))


def test_marks_are_hits_false_or_nothing() -> None:
    nodules = np.array([[0, 0, 0, 10], [50, 0, 0, 6], [90, 0, 0, 8]])
    irrelevant = np.array([[30, 0, 0, -1], [0, 0, 0, 40]])
    marks = np.array([[3, 3, 0], [0, 1, 0], [53, 0, 0], [34, 0, 0], [90, 3, 0], [0, 0, 15]])
    scores = np.array([0.9, 0.4, 0.8, 0.7, 0.6, 0.5])
    hits, found, missed = match_marks(marks, scores, nodules, irrelevant)
    # Two marks on the first nodule; on the second's very edge is outside; unknown size is 10 mm across.
    assert (hits.tolist(), found.tolist(), missed) == ([True, True, False], [0.9, 0.6, 0.8], 1)


def test_a_scan_has_at_most_a_hundred_marks() -> None:
    scores = np.append(np.arange(MOST_MARKS, 0, -1.0), [1.0, 1.0])
    hits, found, missed = match_marks(np.zeros((len(scores), 3)), scores, NONE, NONE)
    assert (hits.any(), found.min(), len(found), missed) == (False, 2.0, MOST_MARKS - 1, 0)
    assert match_marks(np.empty((0, 3)), np.empty(0), np.zeros((2, 4)), NONE)[2] == 2


def test_curve_and_sensitivities_by_hand() -> None:
    hits = np.array([True, False, True, True, False, False])
    curve = froc_curve(hits, np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.1]), scans=2, missed=1)
    assert np.stack(curve, axis=1).tolist() == [[0, 0], [0, 0.25], [0.5, 0.25], [0.5, 0.5], [1, 0.75], [1.5, 0.75]]
    assert sensitivities(curve).tolist() == pytest.approx([0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75])
    nothing_false = froc_curve(np.array([True]), np.array([0.5]), scans=1, missed=1)
    assert sensitivities(nothing_false).tolist() == [0.5] * 7
