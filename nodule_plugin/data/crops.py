"""Nodules of a folder of NIfTI crops with a table.

Layout::

    nodules.csv           a row for each crop
    images/*.nii.gz       CT in HU, array axes (x, y, z) = (column, row, slice)
    masks/*.nii.gz        optional: the nodule's mask, the image's file name, on the image's grid
    dataset.json          optional: {"source": "phantom", "synthetic": true, ...}

Columns needed: image (path below the folder), patient_id, diameter_mm, sphericity, margin, texture, spiculation and
calcification. Columns used where present: series_instance_uid, readers, lobulation, malignancy, subtlety and
internal_structure (an empty cell: not rated). Others are passed over. The ratings are taken as they stand.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from nodule_plugin.data.nodule import Nodule, NoduleSet, Skipped
from nodule_plugin.errors import InputError
from nodule_plugin.findings import OPTIONAL_RATINGS, REQUIRED_RATINGS, Findings
from nodule_plugin.lidc.selection import Selection

TABLE = "nodules.csv"
SIDECAR = "dataset.json"
_REQUIRED_COLUMNS = ("image", "patient_id", "diameter_mm", *REQUIRED_RATINGS)
Row = Mapping[str, str]


def nodules_from_crops(dataset_dir: Path, selection: Selection | None = None) -> NoduleSet:
    """The nodules of a folder of crops, in the order of the table.

    A nodule's id is its image's file name without extensions. Its centre slice is the slice nearest to its mask's
    centre of mass along z (of the slices that the mask touches), its centre there the mask's centre of mass in that
    slice; where there is no masks folder, the crop's middle. Its diameter is the table's: what that means depends on
    who made the table (LUNA16's is that of the sphere of equal volume, about a quarter below the greatest extent).

    Args:
        dataset_dir: folder with ``nodules.csv``; only read.
        selection: limits; all nodules by default. A limit of slice thickness keeps every crop: NIfTI does not store it.

    Raises:
        InputError: if the table lacks a column or holds a value that makes no sense, or a file is missing or broken.
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
        result = _nodule(row, dataset_dir, synthetic, selection or Selection(), where)
        if isinstance(result, Skipped):
            nodules.skipped.append(result)
        else:
            nodules.nodules.append(result)
    return nodules


def _nodule_id(row: Row) -> str:
    return Path(row["image"]).name.removesuffix(".gz").removesuffix(".nii")


def _nodule(row: Row, dataset_dir: Path, synthetic: bool, selection: Selection, where: str) -> Nodule | Skipped:
    findings = _findings(row, where)
    diameter_mm = _number(row, "diameter_mm", where)
    readers = int(_number(row, "readers", where)) if row.get("readers") else 1
    objection = selection.objection(readers, diameter_mm)
    if objection is not None:
        return Skipped(_nodule_id(row), objection)
    image = dataset_dir / row["image"]
    masks = dataset_dir / "masks"
    shape, spacing, (centre_row, centre_column, slice_index) = _place(
        image, masks / image.name if masks.is_dir() else None, where
    )
    return Nodule(
        id=_nodule_id(row),
        patient_id=row["patient_id"],
        series_instance_uid=row.get("series_instance_uid") or "",
        image=image,
        slice_index=slice_index,
        centre=(centre_row, centre_column),
        spacing=spacing,
        shape=shape,
        diameter_mm=diameter_mm,
        findings=findings,
        readers=readers,
        synthetic=synthetic,
    )


def _read_table(table: Path) -> list[tuple[int, Row]]:
    """(line number, row) of each row, all needed cells filled."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows: list[tuple[int, Row]] = [
                (reader.line_num, {name: (cell or "").strip() for name, cell in row.items() if name}) for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({error}); give a CSV file in UTF-8") from error
    missing = [name for name in _REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise InputError(f"{table}: the column {missing[0]!r} is missing; needed are {', '.join(_REQUIRED_COLUMNS)}")
    for line, row in rows:
        empty = [name for name in _REQUIRED_COLUMNS if not row[name]]
        if empty:
            raise InputError(f"{table}: line {line}: {empty[0]} is empty; fill it in or delete the line")
    return rows


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); correct or delete the file") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object is needed; correct or delete the file")
    return content


def _findings(row: Row, where: str) -> Findings:
    rated = [*REQUIRED_RATINGS, *(name for name in OPTIONAL_RATINGS if row.get(name))]
    ratings: dict[str, int] = {}
    for name in rated:
        value = _number(row, name, where)
        if not value.is_integer():
            raise InputError(f"{where}: {name} is {row[name]!r}; a rating is a whole number")
        ratings[name] = int(value)
    try:
        return Findings(**ratings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _number(row: Row, name: str, where: str) -> float:
    try:
        value = float(row[name])
    except ValueError as error:
        raise InputError(f"{where}: {name} is {row[name]!r}, not a number; correct the cell") from error
    if not np.isfinite(value) or value <= 0:
        raise InputError(f"{where}: {name} is {row[name]!r}; a number above 0 is needed")
    return value


def _place(
    image: Path, mask: Path | None, where: str
) -> tuple[tuple[int, int], tuple[float, float], tuple[float, float, int]]:
    """(rows, columns), (row, column) spacing in mm and (row, column, slice) of the nodule's centre."""
    volume, zooms = _load(image, where)
    columns, rows, slices = volume.shape
    if mask is None:
        centre = ((rows - 1) / 2, (columns - 1) / 2, (slices - 1) // 2)
    else:
        marked = _load(mask, where)[0] != 0
        if marked.shape != volume.shape:
            raise InputError(f"{where}: {mask} has shape {marked.shape}, its image {volume.shape}; both need one grid")
        if not marked.any():
            raise InputError(f"{where}: {mask} marks no voxel; delete the line or mend the mask")
        centre = _mask_centre(marked)
    return (rows, columns), (zooms[1], zooms[0]), centre


def _mask_centre(mask: np.ndarray) -> tuple[float, float, int]:
    x, y, z = np.nonzero(mask)
    touched = np.unique(z)
    middle = int(touched[np.abs(touched - z.mean()).argmin()])
    return float(y[z == middle].mean()), float(x[z == middle].mean()), middle


def _load(path: Path, where: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A volume and its voxel sizes; read as a whole, so that a truncated file is found now and not during training."""
    if not path.is_file():
        raise InputError(f"{where}: there is no file {path}; put it there or delete the line")
    try:
        image = nib.load(path)
        volume = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: {path} is not a whole NIfTI file ({reason}); get it anew") from error
    if volume.ndim != 3:
        raise InputError(f"{where}: {path} has shape {volume.shape}; a volume (x, y, z) is needed")
    zooms = image.header.get_zooms()  # type: ignore[attr-defined]
    return volume, (float(zooms[0]), float(zooms[1]), float(zooms[2]))
