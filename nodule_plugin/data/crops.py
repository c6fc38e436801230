"""Nodules of a folder of NIfTI crops with a table.

Layout::

    nodules.csv           a row for each crop
    images/*.nii.gz       CT in HU, axes in any order and direction: the affine says which
    masks/*.nii.gz        optional: the nodule's mask, the image's file name, on the image's grid
    dataset.json          optional: {"source": "phantom", "synthetic": true, ...}

Columns needed: image (path below the folder), patient_id, diameter_mm, sphericity, margin, texture, spiculation and
calcification. Columns used where present: series_instance_uid, readers, lobulation, malignancy, subtlety and
internal_structure (an empty cell: not rated). Others are passed over. The ratings are taken as they stand. Cells are
separated by commas, or by semicolons or tabs, and then decimal commas are read too.
"""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nodule_plugin.data.hounsfield import doubts_of_values, not_hounsfield
from nodule_plugin.data.nifti import Volume, read_volume
from nodule_plugin.data.nodule import Nodule, NoduleSet, Skipped
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.findings import OPTIONAL_RATINGS, REQUIRED_RATINGS, Findings
from nodule_plugin.lidc.selection import Selection

TABLE = "nodules.csv"
SIDECAR = "dataset.json"
_REQUIRED_COLUMNS = ("image", "patient_id", "diameter_mm", *REQUIRED_RATINGS)
_NUMBERS = ("diameter_mm", "readers", *REQUIRED_RATINGS, *OPTIONAL_RATINGS)
_LARGEST_DIAMETER_MM = 300
"""No lung is wider: a larger number is not mm."""
Row = Mapping[str, str]


def nodules_from_crops(dataset_dir: Path, selection: Selection | None = None) -> NoduleSet:
    """The nodules of a folder of crops, in the order of the table.

    A nodule's id is its image's file name without extensions. Its centre slice is the slice nearest to its mask's
    centre of mass along z (of the slices that the mask touches), its centre there the mask's centre of mass in that
    slice; where there is no masks folder, the crop's middle. All three are those of the volume turned so that its axes
    run to the patient's left, back and head. Its diameter is the table's: what that means depends on who made the table
    (LUNA16's is that of the sphere of equal volume, about a quarter below the greatest extent).

    Args:
        dataset_dir: folder with ``nodules.csv``; only read.
        selection: limits; all nodules by default. A limit of slice thickness keeps every crop: NIfTI does not store it.

    Raises:
        InputError: if the table lacks a column or holds a value that makes no sense, a file is missing or broken, or an
            image's values cannot be Hounsfield units. What is only doubtful is among the result's doubts.
    """
    table = dataset_dir / TABLE
    rows = _read_table(table)
    sidecar = _read_sidecar(dataset_dir / SIDECAR)
    synthetic = sidecar.get("synthetic") is True
    source = "phantom" if synthetic and sidecar.get("source") == "phantom" else "crops"
    nodules = NoduleSet(source, dataset_dir, "given")
    line_of: dict[str, int] = {}
    for line, row in tqdm(rows, desc=TABLE, unit="crop", disable=not rows):
        where = f"{table}: line {line}"
        nodule_id = _nodule_id(row)
        if nodule_id in line_of:
            raise InputError(
                f"{where}: image {row['image']!r} has the name of line {line_of[nodule_id]}'s; name each once"
            )
        line_of[nodule_id] = line
        try:
            _add_nodule(nodules, row, synthetic, selection or Selection())
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return nodules


def crop_table(dataset_dir: Path) -> list[tuple[Path, Findings, float]]:
    """Image, findings and diameter (mm) of each row of ``nodules.csv``; no image is opened.

    Raises:
        InputError: if the table lacks a column or holds a value that makes no sense.
    """
    table, entries = dataset_dir / TABLE, []
    for line, row in _read_table(table):
        try:
            entries.append((dataset_dir / row["image"], _findings(row), _number(row, "diameter_mm")))
        except InputError as error:
            raise InputError(f"{table}: line {line}: {error}") from error
    return entries


def _nodule_id(row: Row) -> str:
    return Path(row["image"]).name.removesuffix(".gz").removesuffix(".nii")


def _add_nodule(nodules: NoduleSet, row: Row, synthetic: bool, selection: Selection) -> None:
    findings = _findings(row)
    diameter_mm = _number(row, "diameter_mm")
    if diameter_mm > _LARGEST_DIAMETER_MM:
        raise InputError(f"diameter_mm is {row['diameter_mm']!r}; mm are needed, at most {_LARGEST_DIAMETER_MM}")
    readers = int(_number(row, "readers")) if row.get("readers") else 1
    # The same letters may be spelt in two ways; they are one patient, who belongs in one split.
    patient_id = unicodedata.normalize("NFC", row["patient_id"])
    nodule_id, image, masks = _nodule_id(row), nodules.root / row["image"], nodules.root / "masks"
    if not image.resolve().is_relative_to(nodules.root.resolve()):
        raise InputError(f"image {row['image']!r} is not below {nodules.root}, links followed; move it there")
    objection = selection.objection(readers, diameter_mm)
    if objection is not None:
        nodules.skipped.append(Skipped(nodule_id, objection))
        return
    volume = read_volume(image)
    if fault := not_hounsfield(volume.voxels):
        raise InputError(f"{image}: {fault}")
    centre, slice_index = _centre(volume, masks / image.name if masks.is_dir() else None)
    nodules.doubts += [Skipped(nodule_id, doubt) for doubt in (*volume.doubts, *doubts_of_values(volume.voxels))]
    nodules.nodules.append(
        Nodule(
            id=nodule_id,
            patient_id=patient_id,
            series_instance_uid=row.get("series_instance_uid") or "",
            image=image,
            slice_index=slice_index,
            axes=volume.axes,
            centre=centre,
            spacing=volume.spacing[1::-1],
            shape=volume.voxels.shape[1::-1],
            diameter_mm=diameter_mm,
            findings=findings,
            readers=readers,
            synthetic=synthetic,
        )
    )


def _read_table(table: Path) -> list[tuple[int, Row]]:
    """(line number, row) of each row, all needed cells filled."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            separator = max(",;\t", key=header.count)
            reader = csv.DictReader(file, delimiter=separator)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({error}); give a CSV file in UTF-8") from error
    missing = [name for name in _REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise InputError(
            f"{table}: the column {missing[0]!r} is missing; needed are {', '.join(_REQUIRED_COLUMNS)},"
            f" and there are {', '.join(columns)[:200] or 'none'}"
        )
    if len(set(columns)) < len(columns):
        raise InputError(f"{table}: the column {max(columns, key=columns.count)!r} is there twice; delete one")
    return [(line, _cells(row, columns, separator, f"{table}: line {line}")) for line, row in rows]


def _cells(row: Mapping[str | None, Any], columns: list[str], separator: str, where: str) -> Row:
    """A row's cells by column, without blanks around them and with decimal points."""
    if any(cell.strip() for cell in row.get(None, ())):
        raise InputError(
            f"{where}: more cells than columns; write 9.5 rather than 9,5, or separate cells by semicolons"
        )
    cells = {name: (row[name] or "").strip() for name in columns if name}
    if empty := [name for name in _REQUIRED_COLUMNS if not cells[name]]:
        raise InputError(f"{where}: {empty[0]} is empty; fill it in or delete the line")
    if separator != ",":
        cells |= {name: cells[name].replace(",", ".") for name in _NUMBERS if name in cells}
    return cells


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path, "correct or delete the file")
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object is needed; correct or delete the file")
    return content


def _findings(row: Row) -> Findings:
    ratings: dict[str, int] = {}
    for name in (*REQUIRED_RATINGS, *(name for name in OPTIONAL_RATINGS if row.get(name))):
        value = _number(row, name)
        if not value.is_integer():
            raise InputError(f"{name} is {row[name]!r}; a rating is a whole number")
        ratings[name] = int(value)
    return Findings(**ratings)


def _number(row: Row, name: str) -> float:
    try:
        value = float(row[name])
    except ValueError as error:
        raise InputError(f"{name} is {row[name]!r}, not a number; correct the cell") from error
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {row[name]!r}; a number above 0 is needed")
    return value


def _centre(volume: Volume, mask: Path | None) -> tuple[tuple[float, float], int]:
    """(row, column) of the nodule's centre, and its centre slice."""
    columns, rows, slices = volume.voxels.shape
    if mask is None:
        return ((rows - 1) / 2, (columns - 1) / 2), (slices - 1) // 2
    other = read_volume(mask)
    if (other.axes, other.voxels.shape) != (volume.axes, volume.voxels.shape):
        raise InputError(
            f"{mask} has shape {other.voxels.shape} (axes {other.axes}), its image {volume.voxels.shape}"
            f" ({volume.axes}); both need one grid"
        )
    marked = other.voxels != 0
    if not np.isfinite(other.voxels).all():
        raise InputError(f"{mask} has values that are not finite; mend the mask")
    if not marked.any():
        raise InputError(f"{mask} marks no voxel; delete the line or mend the mask")
    # Sums rather than a list of the marked voxels, which would be 24 times as large as the mask.
    in_slice = marked.sum(axis=(0, 1))
    touched = np.flatnonzero(in_slice)
    middle = int(touched[np.abs(touched - _mean_index(in_slice)).argmin()])
    row, column = (_mean_index(marked[:, :, middle].sum(axis=axis)) for axis in (0, 1))
    return (row, column), middle


def _mean_index(counts: np.ndarray) -> float:
    return float(counts @ np.arange(len(counts)) / counts.sum())
