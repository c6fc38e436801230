from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodule_plugin.data.nodule import Nodule
from nodule_plugin.data.split import SPLITS, check_ratios, split_by_patient
from nodule_plugin.errors import InputError
from nodule_plugin.findings import Findings


def _nodule(number: int, patient: str, malignancy: int | None) -> Nodule:
    findings = Findings(sphericity=3, margin=3, texture=5, spiculation=1, malignancy=malignancy)
    return Nodule(
        f"N{number:04d}", patient, "s", Path("i"), None, (0, 0), (1, 1), (9, 9), 5.0, findings=findings, readers=1
    )


def _nodules(count: int = 1000, per_patient: int = 2) -> list[Nodule]:
    codes = np.random.default_rng(0).choice([1, 2, 3, 4, 5], count, p=[0.15, 0.2, 0.4, 0.15, 0.1])
    return [_nodule(n, f"P{n // per_patient:04d}", int(code)) for n, code in enumerate(codes)]


def _patients(nodules: Sequence[Nodule]) -> set[str]:
    return {nodule.patient_id for nodule in nodules}


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_malignancy_and_patients(seed: int) -> None:
    nodules = _nodules()
    splits = split_by_patient(nodules, (7, 2, 1), seed)
    assert sorted(n.id for split in splits.values() for n in split) == [n.id for n in nodules]
    assert sum(len(_patients(splits[split])) for split in SPLITS) == len(_patients(nodules))
    whole = Counter(n.findings.malignancy for n in nodules)
    for split, share in zip(SPLITS, (0.7, 0.2, 0.1)):
        assert len(splits[split]) == pytest.approx(1000 * share, abs=8)
        spread = Counter(n.findings.malignancy for n in splits[split])
        for code, count in whole.items():
            assert spread[code] / len(splits[split]) == pytest.approx(count / 1000, abs=0.03)


def test_order_does_not_matter_but_the_seed_does() -> None:
    nodules = _nodules(200)
    assert split_by_patient(nodules[::-1]) == split_by_patient(nodules)
    assert split_by_patient(nodules, seed=1) != split_by_patient(nodules)


def test_ratios_in_lowest_terms_are_the_same_split() -> None:
    nodules = _nodules(60)
    assert split_by_patient(nodules, (70, 20, 10)) == split_by_patient(nodules, (7, 2, 1))


@pytest.mark.parametrize(
    ("patients", "ratios", "filled"),
    [
        (0, (7, 2, 1), {}),
        (1, (7, 2, 1), {"training": 1}),
        (2, (7, 2, 1), {"training": 1, "test": 1}),
        (3, (7, 2, 1), {"training": 1, "test": 1, "validation": 1}),
        (6, (7, 2, 1), {"training": 4, "test": 1, "validation": 1}),
        (3, (9, 1, 0), {"training": 2, "validation": 1}),
        (5, (1, 0, 0), {"training": 5}),
    ],
)
def test_few_patients(patients: int, ratios: tuple[int, int, int], filled: dict[str, int]) -> None:
    splits = split_by_patient([_nodule(n, f"P{n // 4}", 3) for n in range(4 * patients)], ratios)
    assert {split: len(_patients(splits[split])) for split in SPLITS if splits[split]} == filled
    assert sum(map(len, splits.values())) == 4 * patients


def test_strata_smaller_than_the_folds() -> None:
    splits = split_by_patient([_nodule(n, f"P{n}", n % 5 + 1) for n in range(20)])
    assert {split: len(splits[split]) for split in SPLITS} == {"training": 14, "validation": 4, "test": 2}


def test_unrated_malignancy_is_a_stratum() -> None:
    splits = split_by_patient([_nodule(n, f"P{n}", None if n % 2 else 3) for n in range(100)])
    assert [sum(n.findings.malignancy is None for n in splits[split]) for split in SPLITS] == [35, 10, 5]


@pytest.mark.parametrize("ratios", [(7, 2), (0, 2, 1), (7, -2, 1), (0.7, 0.2, 0.1), ("7", "2", "1"), 7])
def test_ratios_that_make_no_sense(ratios: Any) -> None:
    with pytest.raises(InputError, match="split ratios: three whole numbers are needed"):
        check_ratios(ratios)
