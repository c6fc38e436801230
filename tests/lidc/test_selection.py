from __future__ import annotations

from typing import Any

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.selection import Selection, get_selection


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
