"""Whole synthetic CT series with their readers' XML, laid out as TCIA lays out LIDC-IDRI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nodule_plugin.errors import InputError
from nodule_plugin.files import new_folder
from nodule_plugin.findings import Findings
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.consensus import form_consensus
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.phantom.dataset import SCAN_MIDDLE
from nodule_plugin.lidc.phantom.dicom import SeriesIdentity, SliceGeometry, write_slice
from nodule_plugin.lidc.phantom.grid import Grid
from nodule_plugin.lidc.phantom.provenance import phantom_uid, write_sidecar
from nodule_plugin.lidc.phantom.readings import write_readings
from nodule_plugin.lidc.phantom.scanner import Scanner
from nodule_plugin.lidc.phantom.shape import add_lobes, outline_points, signed_distance
from nodule_plugin.lidc.phantom.surroundings import lung
from nodule_plugin.lidc.phantom.thorax import Ball, Thorax
from nodule_plugin.lidc.phantom.tissue import nodule_layers
from nodule_plugin.lidc.records import Annotation, Scan

SIDE = 512
"""Pixels a side of a slice."""

MOST_SLICES = 300
"""Longer scans are not chosen: a series is drawn in memory as a whole."""


def write_phantom_series(output_dir: str | Path, scans: int, seed: int = 0, margin_slices: int | None = None) -> Path:
    """Draw whole chests around the annotations of real scans and write them as DICOM with the readers' XML.

    Every nodule lies where its readers outlined it; the outlines in the XML are the readers' own. Body, lungs and all
    pixels are made up.

    Args:
        output_dir: a folder that does not exist yet, or is empty. It appears only when it is complete.
        scans: how many series; each is a patient of its own.
        seed: of the choice of scans and of everything drawn.
        margin_slices: keep only so many slices below and above the outlined ones; the whole scan by default.

    Returns:
        ``output_dir``, which holds ``PatientID/StudyInstanceUID/SeriesInstanceUID/NNNNNN.dcm`` and ``dataset.json``.

    Raises:
        InputError: if the folder is in use or there are not so many scans.
    """
    with new_folder(Path(output_dir)) as folder:
        chosen = choose_scans(load_scans(), scans, seed)
        series = []
        for number, scan in enumerate(tqdm(chosen, desc="drawing chests", unit="scan"), start=1):
            patient_id = f"PHANTOM-{number:04d}"
            trimmed = trim(scan, margin_slices)
            uid = _write_series(folder, trimmed, patient_id, seed)
            series.append({"patient_id": patient_id, "series_instance_uid": uid, "annotation_source": scan.patient_id})
        write_sidecar(folder, seed, series=series)
    return Path(output_dir)


def choose_scans(scans: Sequence[Scan], count: int, seed: int) -> list[Scan]:
    """A seeded choice among the scans that have nodules, even slice spacing and at most :data:`MOST_SLICES` slices.

    Raises:
        InputError: if there are fewer.
    """
    suitable = [scan for scan in scans if scan.annotations and _is_even(scan)]
    if not 1 <= count <= len(suitable):
        raise InputError(f"scans: {count} cannot be chosen, {len(suitable)} are suitable; give a number from 1 to that")
    order = np.random.default_rng(seed).permutation(len(suitable))
    return [suitable[index] for index in sorted(order[:count])]


def _is_even(scan: Scan) -> bool:
    """Whether slices are evenly spaced, not too many, and every outline lies in one of them."""
    gaps = np.diff(scan.slice_z)
    if not 3 <= len(scan.slice_z) <= MOST_SLICES or np.ptp(gaps) > 0.02 * gaps.mean():
        return False
    return {contour.z for annotation in scan.annotations for contour in annotation.contours} <= set(scan.slice_z)


def trim(scan: Scan, margin_slices: int | None) -> Scan:
    """The scan with only the slices from the first outlined one to the last, and ``margin_slices`` on either side."""
    if margin_slices is None:
        return scan
    if margin_slices < 0:
        raise InputError(f"slices: a whole number of 0 or more is needed, not {margin_slices}")
    outlined = [contour.z for annotation in scan.annotations for contour in annotation.contours]
    first = max(scan.slice_z.index(min(outlined)) - margin_slices, 0)
    return replace(scan, slice_z=scan.slice_z[first : scan.slice_z.index(max(outlined)) + margin_slices + 1])


def _write_series(folder: Path, scan: Scan, patient_id: str, seed: int) -> str:
    identity = SeriesIdentity(
        patient_id,
        phantom_uid("study", scan.study_instance_uid, seed),
        phantom_uid("series", scan.series_instance_uid, seed),
        phantom_uid("frame of reference", scan.series_instance_uid, seed),
    )
    target = folder / patient_id / identity.study_instance_uid / identity.series_instance_uid
    target.mkdir(parents=True)
    clusters = cluster_annotations(scan)
    rng = np.random.default_rng([seed, int(scan.annotations[0].id)])
    volume = draw_series(scan, clusters, rng)
    corner = -SCAN_MIDDLE * scan.pixel_spacing
    instance_at = {z: phantom_uid("instance", f"{scan.series_instance_uid} {z}", seed) for z in scan.slice_z}
    for number, (z, plane) in enumerate(zip(scan.slice_z, volume), start=1):
        geometry = SliceGeometry(instance_at[z], number, (corner, corner, z), scan.pixel_spacing, scan.slice_thickness)
        write_slice(target / f"{number:06d}.dcm", plane, identity, geometry)
    write_readings(target / "readings.xml", identity, clusters, instance_at)
    return identity.series_instance_uid


def draw_series(scan: Scan, clusters: Sequence[Sequence[Annotation]], rng: np.random.Generator) -> np.ndarray:
    """(slices, rows, columns) HU of a chest with every nodule where its readers outlined it."""
    grid = Grid(
        first=(0, 0),
        shape=(SIDE, SIDE),
        spacing=scan.pixel_spacing,
        factor=1,
        z=np.asarray(scan.slice_z),
        slice_spacing=float(np.mean(np.diff(scan.slice_z))),
        centre=(SCAN_MIDDLE, SCAN_MIDDLE),
        centre_z=float(np.mean(scan.slice_z)),
    )
    balls = [_ball(cluster, grid) for cluster in clusters]
    thorax = Thorax.draw(SIDE / 2 * scan.pixel_spacing, rng)
    lungs, body = thorax.lungs(grid, balls), thorax.body(grid, balls)
    volume = lung(grid, rng)
    slab = max(scan.slice_thickness, grid.slice_spacing)
    volume = thorax.vessels(lungs, grid, slab, rng).over(volume)
    for layer in thorax.layers(lungs, body, grid, rng):
        volume = layer.over(volume)
    for cluster in clusters:
        findings = form_consensus(cluster)[0].findings
        if findings is not None:
            _add_nodule(volume, grid, cluster, findings, rng)
    return Scanner.draw(scan.slice_thickness, rng).image(volume, grid, rng)


def _ball(cluster: Sequence[Annotation], grid: Grid) -> Ball:
    """The nodule's middle and half its greatest extent, mm on the grid's axes."""
    points = outline_points(cluster)
    z = np.array([contour.z for annotation in cluster for contour in annotation.contours])
    low, high = points.min(axis=0), points.max(axis=0)
    centre = np.array([(z.min() + z.max()) / 2 - grid.centre_z, *((low + high) / 2 - grid.centre) * grid.spacing])
    return centre, float(max((high - low).max() * grid.spacing, np.ptp(z))) / 2


def _add_nodule(
    volume: np.ndarray, grid: Grid, cluster: Sequence[Annotation], findings: Findings, rng: np.random.Generator
) -> None:
    """Draw a nodule into the volume, which is changed."""
    (z, row, column), radius = _ball(cluster, grid)
    reach = 2.2 * radius + 4
    box = tuple(
        slice(*np.searchsorted(axis, (middle - extent, middle + extent)))
        for axis, middle, extent in zip(grid.axes, (z, row, column), (radius + 2 * grid.slice_spacing, reach, reach))
    )
    box_grid = replace(
        grid,
        first=(box[1].start, box[2].start),
        shape=(box[1].stop - box[1].start, box[2].stop - box[2].start),
        z=grid.z[box[0]],
        centre=(row / grid.spacing + SCAN_MIDDLE, column / grid.spacing + SCAN_MIDDLE),
        centre_z=z + grid.centre_z,
    )
    distance = add_lobes(signed_distance(cluster, box_grid, np.eye(2)), box_grid, findings, rng)
    for layer in nodule_layers(distance, box_grid, findings, rng):
        volume[box] = layer.over(volume[box])
