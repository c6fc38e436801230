"""Annotations counted: scans, contours, nodules, and what each limit of a selection leaves of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.geometry import diameter
from nodule_plugin.lidc.readings import choose_readings
from nodule_plugin.lidc.records import Scan
from nodule_plugin.lidc.selection import Selection
from nodule_plugin.lidc.series import index_series
from nodule_plugin.lidc.xml import is_read_message, read_reading

_LIMITS = tuple(field.name for field in fields(Selection))


def scans_from_xml(root: str | Path) -> list[Scan]:
    """Every reading below a folder whose CT series lies there too, ordered by patient and series.

    Raises:
        InputError: if there is no such folder or a reading in it, a file is malformed, or a series is missing.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one with the readers' XML and the CT series")
    index = index_series(folder)
    readings = [read_reading(path) for path in index.xml_files if is_read_message(path)]
    for reading in readings:
        uid = reading.scan.series_instance_uid
        if uid not in index.series:
            raise InputError(f"{reading.path}: its series {uid} is not below {folder}; put it there")
    scans = [index.series[uid].annotated(scan) for uid, scan in choose_readings(readings)[0].items()]
    if not scans:
        raise InputError(f"{folder}: no LidcReadMessage XML file is below it; give another folder")
    return sorted(scans, key=lambda scan: (scan.patient_id, scan.series_instance_uid))


def summarise_scans(scans: Sequence[Scan], selection: Selection) -> dict[str, Any]:
    """Count what scans hold.

    Returns:
        ``scans``, ``patients``, ``annotations``, ``contours``, ``exclusions`` (contours of holes), ``nodules``,
        ``nodules_by_annotations`` ({"1": count, ...}) and ``selection``: for each limit that is set, in the order of
        :class:`Selection`'s fields, how many nodules it and those before it leave.
    """
    annotations = [annotation for scan in scans for annotation in scan.annotations]
    contours = [contour for annotation in annotations for contour in annotation.contours]
    nodules = [(scan, cluster) for scan in tqdm(scans, "nodules", unit="scan") for cluster in cluster_annotations(scan)]
    sizes = Counter(len(cluster) for _, cluster in nodules)
    measured = [
        (len(cluster), float(np.median([diameter(annotation, scan) for annotation in cluster])), scan.slice_thickness)
        for scan, cluster in nodules
    ]
    return {
        "scans": len(scans),
        "patients": len({scan.patient_id for scan in scans}),
        "annotations": len(annotations),
        "contours": len(contours),
        "exclusions": sum(not contour.inclusion for contour in contours),
        "nodules": len(nodules),
        "nodules_by_annotations": {str(size): sizes[size] for size in sorted(sizes)},
        "selection": _left_by_limit(measured, selection),
    }


def _left_by_limit(nodules: Sequence[tuple[int, float, float]], selection: Selection) -> dict[str, int]:
    limits: dict[str, Any] = {}
    left: dict[str, int] = {}
    for name in _LIMITS:
        value = getattr(selection, name)
        if value is not None:
            limits[name] = value
            left[f"{name} {value:g}"] = sum(Selection(**limits).objection(*nodule) is None for nodule in nodules)
    return left
