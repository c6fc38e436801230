"""Which reading of a CT series counts, where several files hold one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from nodule_plugin.errors import InputError
from nodule_plugin.lidc.records import Reading, Scan

_CORRECTED = re.compile(r"(?<![a-z])correct(ed|ion)", re.IGNORECASE)


def choose_readings(readings: Iterable[Reading]) -> tuple[dict[str, Scan], dict[Path, str]]:
    """The reading that counts of each series, where several files have one.

    The Cancer Imaging Archive has corrected readings (161.xml, of patient LIDC-IDRI-0101), and folders then hold both.
    Where files say the same the first by path counts; else the one whose path says "corrected"; else the one that was
    given last.

    Returns:
        Series -> scan, and the files that do not count with the reason.

    Raises:
        InputError: if two files differ and neither rule tells which counts.
    """
    by_series: dict[str, list[Reading]] = defaultdict(list)
    for reading in sorted(readings, key=lambda reading: (not _is_corrected(reading), reading.path)):
        by_series[reading.scan.series_instance_uid].append(reading)
    chosen: dict[str, Scan] = {}
    left_out: dict[Path, str] = {}
    for uid, several in by_series.items():
        different = [
            one for number, one in enumerate(several) if not any(_agree(one, prior) for prior in several[:number])
        ]
        best, rule = _best(different)
        chosen[uid] = best.scan
        for other in several:
            if other is not best:
                why = "holds the same reading" if _agree(other, best) else f"holds the {rule} reading of its series"
                left_out[other.path] = f"{best.path} {why}"
    return chosen, left_out


def _best(readings: list[Reading]) -> tuple[Reading, str]:
    """The reading that counts of some that differ, and what it is by the rule that says so."""
    if len(readings) == 1:
        return readings[0], "only"
    if [_is_corrected(reading) for reading in readings[:2]] == [True, False]:
        return readings[0], "corrected"
    *_, second, last = sorted(readings, key=lambda reading: reading.serviced)
    if second.serviced < last.serviced:
        return last, "latest"
    raise InputError(
        f"{second.path} and {last.path}: two readings of the series {last.scan.series_instance_uid} that differ;"
        " remove the one that shall not count, or put 'corrected' into the other's name"
    )


def _is_corrected(reading: Reading) -> bool:
    return _CORRECTED.search(str(reading.path)) is not None


def _agree(one: Reading, other: Reading) -> bool:
    return _content(one.scan) == _content(other.scan)


def _content(scan: Scan) -> list[object]:
    """What a reading says, to be compared."""
    return [
        (annotation.ratings, [(c.z, c.inclusion, c.points.tolist()) for c in annotation.contours])
        for annotation in scan.annotations
    ]
