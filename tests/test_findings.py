from __future__ import annotations

import json

import numpy as np
import pytest

import nodule_plugin
from nodule_plugin import Findings, InputError
from nodule_plugin.findings import OPTIONAL_RATINGS, REQUIRED_RATINGS, SCALES

RATINGS = {"sphericity": 3, "margin": 4, "texture": 5, "spiculation": 1, "calcification": 6}


@pytest.mark.parametrize("name", list(SCALES))
@pytest.mark.parametrize("value", [0, 7, 2.5, "3", True])
def test_ratings_off_their_scale_are_named(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name}: .*{value!r}"):
        Findings.from_dict(RATINGS | {name: value})


def test_whole_numbers_of_a_table_are_ratings() -> None:
    """A row of NumPy or pandas holds no int of Python's, and its JSON must not tell."""
    findings = Findings(**{name: np.int64(value) for name, value in RATINGS.items()})
    assert json.dumps(findings.to_dict()) == json.dumps(RATINGS)


def test_everything_public_is_listed() -> None:
    assert set(nodule_plugin.__all__) <= set(dir(nodule_plugin))


@pytest.mark.parametrize("name", REQUIRED_RATINGS)
def test_missing_ratings_are_named(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Findings.from_dict({key: value for key, value in RATINGS.items() if key != name})
    with pytest.raises(InputError, match=f"{name}: .* not None"):  # null in JSON
        Findings.from_dict(RATINGS | {name: None})


def test_unknown_ratings_are_named() -> None:
    with pytest.raises(InputError, match="'colour'"):
        Findings.from_dict(RATINGS | {"colour": 1})


@pytest.mark.parametrize("name", OPTIONAL_RATINGS)
def test_optional_ratings_may_be_left_out(name: str) -> None:
    assert getattr(Findings.from_dict(RATINGS), name) is None
    assert Findings.from_dict(RATINGS | {name: 1}).to_dict() == RATINGS | {name: 1}


def test_every_code_has_a_label() -> None:
    for name, scale in SCALES.items():
        for code in scale.codes:
            assert Findings.from_dict(RATINGS | {name: code}).describe()[name] == scale.labels[code]


@pytest.mark.parametrize(("code", "calcified"), [(1, True), (5, True), (6, False)])
def test_calcification_6_is_absent(code: int, calcified: bool) -> None:
    assert Findings.from_dict(RATINGS | {"calcification": code}).calcified is calcified
