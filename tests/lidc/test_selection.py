from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.database import database_nodules
from nodule_plugin.lidc.geometry import diameter
from nodule_plugin.lidc.selection import SELECTIONS, Selection, get_selection

REFERENCE_NODULES = 2077
LIMITS = ((0, *range(3, 11)), (20, 25, 30, 40, np.inf), (1, 2, 3, 4), (4, np.inf), (2, 2.5, 3, 4, np.inf))
"""Lower and upper bound of the diameter, least and most readers, thickest slices."""
DIAMETERS: dict[str, Callable[[Sequence[float]], float]] = {
    **{"median": np.median, "mean": np.mean, "greatest": max, "least": min, "first": lambda diameters: diameters[0]}
}


@pytest.mark.parametrize(
    ("limits", "objection"),
    [
        ({}, None),
        ({"min_readers": 3}, None),
        ({"min_readers": 4}, "readers below 4"),
        ({"max_readers": 2}, "readers above 2"),
        ({"min_diameter_mm": 8}, None),
        ({"min_diameter_mm": 8.5}, "diameter below 8.5 mm"),
        ({"max_diameter_mm": 7}, "diameter above 7 mm"),
        ({"max_slice_thickness_mm": 2.5}, None),
        ({"max_slice_thickness_mm": 2}, "slice thickness above 2 mm"),
    ],
)
def test_objection(limits: dict[str, Any], objection: str | None) -> None:
    assert Selection(**limits).objection(readers=3, diameter_mm=8.0, slice_thickness_mm=2.5) == objection


def test_unknown_thickness_is_kept() -> None:
    assert Selection(max_slice_thickness_mm=1).objection(1, 8.0) is None


def test_named_selection_with_a_limit_replaced() -> None:
    chosen = get_selection("reference", min_readers=3, max_diameter_mm=None)
    assert (chosen.min_readers, chosen.max_readers, chosen.max_diameter_mm) == (3, 4, 40)
    assert get_selection() == Selection()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "best"}, "selection: there is no 'best'"),
        ({"min_readers": -1}, "min_readers: a number of 0 or more is needed, not -1"),
        ({"min_diameter_mm": "5"}, "min_diameter_mm: a number of 0 or more is needed, not '5'"),
        ({"min_diameter_mm": 9, "max_diameter_mm": 8}, "min_diameter_mm: 9 is above max_diameter_mm 8"),
    ],
)
def test_what_makes_no_sense_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_selection(**arguments)


def test_no_rule_in_whole_millimetres_gives_the_reference_methods_count() -> None:
    """The search that docs/lidc.md reports: 9,000 rules, and how near to 2,077 nodules they come."""
    nodules = database_nodules()
    diameters = [[diameter(annotation, scan) for annotation in cluster] for scan, cluster in nodules]
    readers = np.array([len(cluster) for _, cluster in nodules])
    thickness = np.array([scan.slice_thickness for scan, _ in nodules])
    counts = {}
    for name, measure in DIAMETERS.items():
        size = np.array([measure(one) for one in diameters])
        for low, high, least, last, thick in product(*LIMITS):
            kept = (low <= size) & (size <= high) & (least <= readers) & (readers <= last) & (thickness <= thick)
            counts[name, low, high, least, last, thick] = int(kept.sum())
    assert len(counts) == 9000
    nearest = {rule: count for rule, count in counts.items() if abs(count - REFERENCE_NODULES) <= 3}
    assert nearest == {
        ("first", 5, np.inf, 1, np.inf, 2.5): 2078,
        ("median", 5, 40, 1, 4, 2.5): 2080,
        ("mean", 5, 40, 1, 4, 2.5): 2080,
        ("median", 4, 20, 1, np.inf, 2.5): 2074,
    }
    assert SELECTIONS["reference"] == Selection(1, 4, 5, 40, 2.5)
