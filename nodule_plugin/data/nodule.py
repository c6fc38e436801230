"""The record that every source of nodules yields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nodule_plugin.data.orientation import SHOWN
from nodule_plugin.findings import Findings


@dataclass(frozen=True)
class Nodule:
    """One nodule: its centre slice, where it lies in it, how large it is and what the readers said.

    Attributes:
        id: unique within the dataset, stable between runs.
        patient_id, series_instance_uid: DICOM identifiers.
        image: file with the centre slice: a DICOM instance or a NIfTI volume.
        slice_index: index of the centre slice in the NIfTI volume, turned; None for a DICOM instance.
        centre: (row, column) of the nodule's centre in the slice, in pixels (not rounded; pixel centres are whole).
        spacing: (row, column) distance between pixels, mm.
        shape: (rows, columns) of the slice.
        diameter_mm: the nodule's maximum diameter in the axial plane.
        findings: the consensus of its readers.
        readers: how many readers' ratings the consensus rests on.
        synthetic: True where the pixels are not a patient's.
        axes: how the file's axes run, see :mod:`nodule_plugin.data.orientation`. Index, centre, spacing and shape are
            those of the image turned: its columns run to the patient's left, its rows to the back.
    """

    id: str
    patient_id: str
    series_instance_uid: str
    image: Path
    slice_index: int | None
    centre: tuple[float, float]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    diameter_mm: float
    findings: Findings
    readers: int
    synthetic: bool = False
    axes: str = SHOWN


@dataclass(frozen=True)
class Skipped:
    """Something a source could not or was told not to use, or that is in doubt, for the data list's report."""

    what: str
    reason: str


@dataclass
class NoduleSet:
    """Everything a source yields.

    Attributes:
        source: "lidc-idri", "crops" or "phantom" (synthetic CT, in either layout).
        root: folder that every nodule's image lies in.
        consensus: rule by which the findings follow from the readers, or "given" where the source holds findings.
        nodules: in a stable order.
        skipped: what was left out, and why.
        doubts: what is used and may be wrong, and why.
    """

    source: str
    root: Path
    consensus: str
    nodules: list[Nodule] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    doubts: list[Skipped] = field(default_factory=list)
