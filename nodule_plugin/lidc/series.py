"""CT series below a folder, found by their headers whatever the files are called, and their slices by position."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from nodule_plugin.errors import InputError
from nodule_plugin.files import write_text_atomically
from nodule_plugin.lidc.dicom_header import (
    DICOM_SUFFIXES,
    BrokenFile,
    SliceHeader,
    has_dicom_preamble,
    read_slice_header,
)

_logger = logging.getLogger(__name__)
_INDEX_VERSION = 1
_BATCH = 64
"""Files handed to a worker at once."""
_SAME_POSITION = 1e-3
"""Slices nearer to each other than this, mm, are copies of one."""


@dataclass(frozen=True)
class Slice:
    """One slice of a series: its file and what its header says."""

    path: Path
    header: SliceHeader


@dataclass(frozen=True)
class Series:
    """One CT series.

    Attributes:
        slices: by ascending z, one for each position.
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
        """Positions of the slices, mm, ascending."""
        return tuple(item.header.z for item in self.slices)

    @property
    def slice_distance(self) -> float:
        """Median distance between neighbouring slices, mm; the slice thickness where there is one slice only."""
        return float(np.median(np.diff(self.slice_z))) if len(self.slices) > 1 else self.header.slice_thickness

    def nearest(self, z: float) -> tuple[Slice, float]:
        """The slice nearest to a position, the lower of two equally near, and its distance in mm."""
        distances = np.abs(np.array(self.slice_z) - z)
        index = int(distances.argmin())
        return self.slices[index], float(distances[index])


@dataclass(frozen=True)
class SeriesIndex:
    """What a folder holds.

    Attributes:
        series: by SeriesInstanceUID.
        broken: files that should have been CT slices, and why they cannot be used.
        xml_files: every .xml file, read or not: the readers' annotations may be among them.
    """

    series: Mapping[str, Series]
    broken: Mapping[Path, str] = field(default_factory=dict)
    xml_files: tuple[Path, ...] = ()


def index_series(root: Path, index_file: Path | None = None, num_workers: int = 1) -> SeriesIndex:
    """Find every axial CT series below a folder.

    Files that are not DICOM and DICOM files that are not CT are passed over. Links are followed. Where several files of
    a series hold the same position (within 0.001 mm) the one with the lowest instance number is kept, as pylidc does,
    and of several such the first by path.

    Args:
        root: folder to search; only read.
        index_file: JSON file that keeps what was read between calls; a header is read again when its file's size or
            modification time has changed. None keeps nothing; nor is anything kept while a file is broken.
        num_workers: processes that read headers; joblib's other backends (Dask, Ray) apply through
            ``joblib.parallel_config``.

    Raises:
        InputError: if ``index_file`` cannot be written.
    """
    files = sorted(_walk(root))
    known = _load_known(index_file, root)
    keys = {path: _key(path, root) for path in files if path.suffix.lower() != ".xml"}
    entries = {path: known[key] for path, key in keys.items() if key in known}
    entries |= _read_headers([path for path in keys if path not in entries], num_workers)
    broken = {path: entry for path in keys if isinstance(entry := entries[path], str)}
    if index_file is not None and not broken:
        _save_known(index_file, root, {key: entries[path] for path, key in keys.items()})
    slices = [Slice(path, entry) for path, entry in entries.items() if isinstance(entry, SliceHeader)]
    return SeriesIndex(
        series=_group(slices),
        broken=broken,
        xml_files=tuple(path for path in files if path.suffix.lower() == ".xml"),
    )


Entry = SliceHeader | str | None
"""A slice, or what is wrong with the file, or None for what is not CT."""
Key = tuple[str, int, int]
"""Path below the root, size in bytes, modification time in nanoseconds."""


def _walk(root: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        resolved = Path(folder).resolve()
        if resolved in seen:  # a link to a folder above would lead round for ever
            subfolders.clear()
            continue
        seen.add(resolved)
        # Hidden files are the leavings of file managers, such as macOS's ._000001.dcm beside each slice.
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _key(path: Path, root: Path) -> Key:
    name = path.relative_to(root).as_posix()
    try:
        status = path.stat()
    except OSError:
        return name, 0, 0  # a dangling link: reading it says what is wrong
    return name, status.st_size, status.st_mtime_ns


def _read_headers(paths: list[Path], num_workers: int) -> dict[Path, Entry]:
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    results = Parallel(n_jobs=num_workers, return_as="generator")(delayed(_read_batch)(batch) for batch in batches)
    entries: dict[Path, Entry] = {}
    with tqdm(total=len(paths), desc="DICOM headers", unit="file", disable=not paths) as progress:
        for batch, result in zip(batches, results):
            entries.update(zip(batch, result))
            progress.update(len(batch))
    return entries


def _read_batch(paths: list[Path]) -> list[Entry]:
    return [_read_entry(path) for path in paths]


def _read_entry(path: Path) -> Entry:
    try:
        return read_slice_header(path)
    except BrokenFile as error:
        return str(error)


def _group(slices: Iterable[Slice]) -> dict[str, Series]:
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for item in slices:
        by_uid[item.header.series_instance_uid].append(item)
    return {uid: _series(by_uid[uid]) for uid in sorted(by_uid)}


def _series(slices: list[Slice]) -> Series:
    ordered = sorted(slices, key=lambda item: (round(item.header.z, 3), item.header.instance_number, item.path))
    kept: list[Slice] = []
    duplicates: list[Path] = []
    for item in ordered:
        if kept and item.header.z - kept[-1].header.z < _SAME_POSITION:
            duplicates.append(item.path)
        else:
            kept.append(item)
    return Series(tuple(kept), tuple(duplicates))


def _load_known(index_file: Path | None, root: Path) -> dict[Key, Entry]:
    if index_file is None or not index_file.is_file():
        return {}
    try:
        content = json.loads(index_file.read_text(encoding="utf-8"))
        if content["version"] != _INDEX_VERSION or content["root"] != str(root.resolve()):
            return {}
        common = content["headers"]
        return {(name, size, time): _decode(entry, common) for name, size, time, entry in content["files"]}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        _logger.warning("%s: not a usable index (%s); the headers are read again", index_file, error)
        return {}


def _save_known(index_file: Path, root: Path, entries: Mapping[Key, Entry]) -> None:
    # What a series' slices share is written once: LIDC-IDRI has 244,527 files.
    common: dict[str, int] = {}
    files = [[*key, _encode(entry, common)] for key, entry in entries.items()]
    content = {
        "version": _INDEX_VERSION,
        "root": str(root.resolve()),
        "headers": [json.loads(header) for header in common],
        "files": files,
    }
    try:
        write_text_atomically(index_file, json.dumps(content, separators=(",", ":")))
    except OSError as error:
        raise InputError(f"{index_file}: cannot be written ({error.strerror}); give another folder for it") from error


def _encode(entry: Entry, common: dict[str, int]) -> Any:
    if not isinstance(entry, SliceHeader):
        return entry
    shared = asdict(entry)
    own = [shared.pop("z"), shared.pop("instance_number")]
    return [common.setdefault(json.dumps(shared), len(common)), *own]


def _decode(entry: Any, common: list[dict[str, Any]]) -> Entry:
    if not isinstance(entry, list):
        return entry
    header, z, instance_number = entry
    shared = common[header]
    pairs = {name: tuple(shared[name]) for name in ("spacing", "shape")}
    return SliceHeader(**(shared | pairs), z=z, instance_number=instance_number)


def contains_dicom(root: Path) -> bool:
    """Whether any file below a folder is DICOM, by its content or, where it is damaged, by its name."""
    return any(path.suffix.lower() in DICOM_SUFFIXES or has_dicom_preamble(path) for path in _walk(root))
