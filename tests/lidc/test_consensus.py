from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES
from nodule_plugin.lidc import consensus as rules
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.consensus import form_consensus
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.records import Annotation

COMMON = {"sphericity": 3, "margin": 3, "texture": 5, "spiculation": 1, "calcification": 6}


def _readings(name: str, codes: Sequence[int]) -> list[Annotation]:
    return [Annotation(str(n), "", COMMON | {name: code}, ()) for n, code in enumerate(codes, start=1)]


@pytest.mark.parametrize(
    ("rule", "codes", "result"),
    [
        (rules.median, [3], 3),
        (rules.median, [2, 3], 3),  # a half goes up
        (rules.median, [3, 4], 4),
        (rules.median, [1, 4], 3),
        (rules.median, [5, 1, 1], 1),
        (rules.mean, [1, 2], 2),
        (rules.mean, [1, 1, 2], 1),
        (rules.mean, [1, 2, 2], 2),
        (rules.mean, [4, 5, 5, 4], 5),
        (rules.mode, [1, 1, 5], 1),
        (rules.mode, [5, 4], 4),
        (rules.mode, [2, 5, 5, 2, 3], 2),
    ],
)
def test_rules(rule: Callable[[Sequence[int]], int], codes: list[int], result: int) -> None:
    assert rule(codes) == result
    assert rule(codes[::-1]) == result


@pytest.mark.parametrize(
    ("rule", "result"), [("median", 4), ("mean", 3), ("mode", 4), ("reader:1", 1), ("reader:3", 4)]
)
def test_rule_by_name(rule: str, result: int) -> None:
    [formed] = form_consensus(_readings("margin", [1, 4, 4]), rule)
    assert formed.findings is not None
    assert formed.findings.margin == result
    assert formed.reader == (int(rule[-1]) if rule.startswith("reader") else None)


def test_default_is_the_median() -> None:
    readings = _readings("margin", [1, 2, 5, 5])
    [by_default], [by_median] = form_consensus(readings), form_consensus(readings, "median")
    assert by_default.findings == by_median.findings


@pytest.mark.parametrize("rule", ["median", "mean", "mode"])
@pytest.mark.parametrize(("codes", "result"), [([6, 6, 3], 6), ([3, 6], 3), ([3, 6, 4, 4], 4)])
def test_nominal_scales_take_the_most_frequent_code(rule: str, codes: list[int], result: int) -> None:
    [formed] = form_consensus(_readings("calcification", codes), rule)
    assert formed.findings is not None
    assert formed.findings.calcification == result


def test_each_reading_by_itself() -> None:
    formed = form_consensus(_readings("margin", [1, 4, 5]), "each")
    assert [one.reader for one in formed] == [1, 2, 3]
    assert [one.findings.margin for one in formed if one.findings] == [1, 4, 5]


def test_a_reader_who_is_not_there() -> None:
    assert form_consensus(_readings("margin", [1, 4]), "reader:3") == []


@pytest.mark.parametrize("rule", ["average", "reader", "reader:0", "reader:x", ""])
def test_unknown_rule(rule: str) -> None:
    with pytest.raises(InputError, match="consensus: there is no rule"):
        form_consensus(_readings("margin", [1]), rule)


def test_code_off_its_scale_is_left_out_and_reported() -> None:
    [formed] = form_consensus(_readings("internal_structure", [5, 1, 1]), "median")
    assert formed.findings is not None
    assert formed.findings.internal_structure == 1
    assert formed.remarks == ("annotation 1: internal_structure 5 is not on the scale of 1 to 4 and was left out",)


def test_nothing_valid_for_an_optional_rating_is_not_rated() -> None:
    [formed] = form_consensus(_readings("internal_structure", [5]))
    assert formed.findings is not None
    assert formed.findings.internal_structure is None


def test_nothing_valid_for_a_needed_rating_gives_no_findings() -> None:
    [formed] = form_consensus(_readings("texture", [0, 9]))
    assert formed.findings is None
    assert formed.remarks[-1] == "no reader gave a valid code for texture"


def test_annotation_3761_of_lidc_idri() -> None:
    annotation = next(a for scan in load_scans() for a in scan.annotations if a.id == "3761")
    [formed] = form_consensus([annotation])
    assert formed.findings is not None
    assert len(formed.remarks) == 1


def test_mode_agrees_with_the_crops_table(real_data: Path) -> None:
    """The table holds the mode of readers grouped by others; groups of the same size must give what it says."""
    with (real_data / "lidc_nodule_crops" / "nodules.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["patient_id"] < "LIDC-IDRI-0150"]
    agreeing = total = 0
    patients = {row["patient_id"] for row in rows}
    for scan in (scan for scan in load_scans() if scan.patient_id in patients):
        clusters = cluster_annotations(scan)
        for row in rows:
            if row["series_instance_uid"] != scan.series_instance_uid:
                continue
            ratings = {name: int(row[name]) for name in SCALES}
            found = [f.findings.to_dict() for c in clusters for f in form_consensus(c, "mode") if f.findings]
            agreeing += max(np.mean([one[name] == ratings[name] for name in SCALES]) for one in found) == 1
            total += 1
    assert total > 50
    assert agreeing / total > 0.9
