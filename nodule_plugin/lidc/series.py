"""CT series below a folder, known by their headers whatever the files are called, and their slices by position."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nodule_plugin.files import visible_entries
from nodule_plugin.lidc.dicom_header import (
    DICOM_SUFFIXES,
    BrokenFile,
    SliceHeader,
    has_dicom_preamble,
    read_slice_header,
)
from nodule_plugin.lidc.header_cache import Entry, HeaderCache, Key
from nodule_plugin.lidc.records import Scan
from nodule_plugin.lidc.xml import with_geometry
from nodule_plugin.parallel import in_order

_BATCH = 64
"""Files handed to a worker at once."""
_SAME_POSITION = 1e-3
"""Slices nearer to each other than this, mm, are copies of one."""
_SAME_DIRECTION = 1e-2
"""Direction cosines may differ by so much between slices that are parallel: scanners round them."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice of a series: its file and what its header says."""

    path: Path
    header: SliceHeader


@dataclass(frozen=True)
class Series:
    """One CT series.

    Attributes:
        slices: by ascending position along the normal, one for each position.
        duplicates: files left out because another holds the same position.
    """

    slices: tuple[Slice, ...]
    duplicates: tuple[Path, ...] = ()

    @property
    def header(self) -> SliceHeader:
        """The first slice's header, for what all slices share."""
        return self.slices[0].header

    @property
    def slice_z(self) -> tuple[float, ...]:
        """The slices' z, which contours refer to, mm, ascending."""
        return tuple(item.header.z for item in self.slices)

    @property
    def slice_distance(self) -> float:
        """Median distance between neighbouring slices, mm; the slice thickness where there is one slice only."""
        positions = [item.header.position for item in self.slices]
        return float(np.median(np.diff(positions))) if len(positions) > 1 else self.header.slice_thickness

    def nearest(self, z: float) -> tuple[Slice, float]:
        """The slice nearest to a z, the lower of two equally near, and how far away it is along the normal, mm."""
        first, last = self.header, self.slices[-1].header
        along_normal = (last.position - first.position) / (last.z - first.z) if len(self.slices) > 1 else 1.0
        distances = np.abs(np.array(self.slice_z) - z)
        index = int(distances.argmin())
        return self.slices[index], float(distances[index]) * along_normal

    def annotated(self, scan: Scan) -> Scan:
        """A scan read from XML, with what this series says, see :func:`with_geometry`."""
        header = self.header
        return with_geometry(scan, header.patient_id, header.slice_thickness, header.spacing[0], self.slice_z)


@dataclass(frozen=True)
class SeriesIndex:
    """What a folder holds.

    Attributes:
        series: by SeriesInstanceUID.
        broken: files that should have been slices and folders that cannot be used, with the reason and what helps.
        xml_files: every .xml file, read or not: the readers' annotations may be among them.
    """

    series: Mapping[str, Series]
    broken: Mapping[Path, str] = field(default_factory=dict)
    xml_files: tuple[Path, ...] = ()


def index_series(root: Path, index_file: Path | None = None, num_workers: int | None = None) -> SeriesIndex:
    """Find every axial CT series below a folder.

    Files that are not DICOM, DICOM files that are not CT, and what is hidden are passed over. Links are followed.
    Slices are ordered along their normal. Where several files of a series hold the same position (within 0.001 mm) the
    one with the lowest instance number is kept, as pylidc does, and of several such the first by path. A file whose
    patient, study or orientation is not that of its series' other files is broken.

    Args:
        root: folder to search; only read.
        index_file: file that keeps what was read between calls, and while one is under way: an interrupted call goes
            on where it was. A header is read again when its file's size or modification time has changed, or when the
            file was broken. None keeps nothing.
        num_workers: processes that read headers; None leaves it to ``joblib.parallel_config``.

    Raises:
        InputError: if ``index_file`` cannot be written.
    """
    errors: list[OSError] = []
    files = sorted(_walk(root, errors))
    keys = {path: _key(path, root) for path in files if path.suffix.lower() != ".xml"}
    results = _read_headers(keys, HeaderCache(index_file, root, keys.values()), num_workers)
    slices = [Slice(path, result) for path, result in results.items() if isinstance(result, SliceHeader)]
    series, odd = _group(slices)
    return SeriesIndex(
        series=series,
        broken={Path(error.filename): f"cannot be read ({error.strerror}); {_remedy(error)}" for error in errors}
        | {path: result for path, result in results.items() if isinstance(result, str)}
        | odd,
        xml_files=tuple(path for path in files if path.suffix.lower() == ".xml"),
    )


def _walk(root: Path, errors: list[OSError] | None = None) -> Iterator[Path]:
    """Every file below a folder that is not hidden; a folder that cannot be read adds to ``errors``."""
    seen: set[Path] = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        resolved = folder.resolve()
        if resolved in seen:  # a link to a folder above would lead round for ever
            continue
        seen.add(resolved)
        try:
            entries = visible_entries(folder)
        except OSError as error:
            if errors is not None:
                errors.append(error)
            continue
        for entry in entries:
            if entry.is_dir():
                folders.append(Path(entry.path))
            elif entry.is_file() or not Path(entry.path).exists():  # reading a dangling link says what is wrong
                yield Path(entry.path)


def _remedy(error: OSError) -> str:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return "give the path of a folder" if missing else "change its permissions"


def _key(path: Path, root: Path) -> Key:
    name = path.relative_to(root).as_posix()
    try:
        status = path.stat()
    except OSError:
        return name, 0, 0
    return name, status.st_size, status.st_mtime_ns


def _read_headers(keys: Mapping[Path, Key], cache: HeaderCache, num_workers: int | None) -> dict[Path, Entry | str]:
    """Each file's entry, or what is wrong with it."""
    results: dict[Path, Entry | str] = {}
    unread = []
    for path, key in keys.items():
        if key in cache.entries:
            results[path] = cache.entries[key]
        else:
            unread.append(path)
    if not unread:
        return results
    cache.add({})  # that it cannot be written is better known now
    batches = [unread[start : start + _BATCH] for start in range(0, len(unread), _BATCH)]
    with (
        closing(in_order(_read_batch, batches, num_workers)) as read,
        tqdm(total=len(unread), desc="DICOM headers", unit="file") as progress,
    ):
        for batch, entries in zip(batches, read):
            results.update(zip(batch, entries))
            cache.add({keys[path]: entry for path, entry in zip(batch, entries) if not isinstance(entry, str)})
            progress.update(len(batch))
    return results


def _read_batch(paths: list[Path]) -> list[Entry | str]:
    return [_read_entry(path) for path in paths]


def _read_entry(path: Path) -> Entry | str:
    try:
        return read_slice_header(path)
    except BrokenFile as error:
        return str(error)


def _group(slices: Iterable[Slice]) -> tuple[dict[str, Series], dict[Path, str]]:
    """Series by UID, and the files that do not fit into theirs, with the reason."""
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for item in slices:
        by_uid[item.header.series_instance_uid].append(item)
    series: dict[str, Series] = {}
    odd: dict[Path, str] = {}
    for uid in sorted(by_uid):
        usual = _usual(by_uid[uid])
        misfits = [_misfit(item.header, usual) for item in by_uid[uid]]
        series[uid] = _series([item for item, misfit in zip(by_uid[uid], misfits) if misfit is None])
        odd |= {item.path: misfit for item, misfit in zip(by_uid[uid], misfits) if misfit is not None}
    return series, odd


def _usual(slices: list[Slice]) -> SliceHeader:
    """The header of the first slice whose patient, study and orientation are those of most of a series' slices."""
    headers = [item.header for item in slices]
    kinds = [(h.patient_id, h.study_instance_uid, *(round(value, 2) for value in h.orientation)) for h in headers]
    return headers[kinds.index(Counter(kinds).most_common(1)[0][0])]


def _misfit(header: SliceHeader, usual: SliceHeader) -> str | None:
    for tag, own, others in (
        ("PatientID", header.patient_id, usual.patient_id),
        ("StudyInstanceUID", header.study_instance_uid, usual.study_instance_uid),
    ):
        if own != others:
            return f"its {tag} is {own}, that of its series' other files {others}; correct or remove it"
    if max(abs(own - other) for own, other in zip(header.orientation, usual.orientation)) > _SAME_DIRECTION:
        return "not parallel to its series' other slices (ImageOrientationPatient); correct or remove it"
    return None


def _series(slices: list[Slice]) -> Series:
    ordered = sorted(slices, key=lambda item: (round(item.header.position, 3), item.header.instance_number, item.path))
    kept: list[Slice] = []
    duplicates: list[Path] = []
    for item in ordered:
        if kept and item.header.position - kept[-1].header.position < _SAME_POSITION:
            duplicates.append(item.path)
        else:
            kept.append(item)
    return Series(tuple(kept), tuple(duplicates))


def contains_dicom(root: Path) -> bool:
    """Whether any file below a folder is DICOM, by its content or, where it is damaged, by its name."""
    return any(path.suffix.lower() in DICOM_SUFFIXES or has_dicom_preamble(path) for path in _walk(root))
