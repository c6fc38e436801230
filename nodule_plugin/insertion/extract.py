"""LIDC-IDRI's own nodules as masks: NIfTI on the series' voxels, and DICOM Segmentation of its slices."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from nodule_plugin import __version__
from nodule_plugin.data.lidc_tree import ANNOTATIONS, annotated_scans
from nodule_plugin.data.nifti import encode_volume
from nodule_plugin.errors import InputError
from nodule_plugin.files import new_folder, write_json
from nodule_plugin.insertion.host import Geometry, read_file, series_geometry
from nodule_plugin.insertion.mask_shapes import longest_diameter_mm
from nodule_plugin.insertion.segmentation import KINDS, Segment, segmentation
from nodule_plugin.lidc.citation import ATTRIBUTION, CITATION, LICENCE, LICENCE_URL
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.consensus import form_consensus
from nodule_plugin.lidc.geometry import slice_indices
from nodule_plugin.lidc.masks import consensus_mask
from nodule_plugin.lidc.records import Scan
from nodule_plugin.lidc.series import Series, index_series

FORMATS = ("nifti", "seg")
MANIFEST = "manifest.json"


def extract_masks(
    dataset_dir: Path,
    output_dir: Path,
    formats: Sequence[str] = FORMATS,
    level: float = 0.5,
    annotations: str = "auto",
) -> list[dict[str, Any]]:
    """Write every nodule of the annotated series below a folder.

    Of each series: ``NAME.nii.gz``, numbered nodules on all of its voxels (a shared voxel is the later one's), and
    ``NAME_binary.dcm`` and ``NAME_labelmap.dcm``, where NAME is the patient's, as :func:`nodules_from_lidc` names
    nodules. ``manifest.json`` lists the nodules; a nodule's number is the end of its id.

    Args:
        dataset_dir: folder with DICOM series; only read.
        output_dir: a folder that does not exist yet, or is empty.
        formats: of :data:`FORMATS`.
        level: fraction of a nodule's readers that must have outlined a voxel.
        annotations: "auto", "database" or "xml".

    Returns:
        The manifest's nodules.

    Raises:
        InputError: if what was given cannot be used, a file is broken, slices are missing, or nothing is annotated.
    """
    if not 0 < level <= 1:
        raise InputError(f"level: a number above 0, up to 1, is needed, not {level:g}")
    if annotations not in ANNOTATIONS:
        raise InputError(f"annotations: there is no {annotations!r}; choose one of {', '.join(ANNOTATIONS)}")
    index = index_series(dataset_dir)
    if index.broken:
        path, reason = next(iter(index.broken.items()))
        raise InputError(f"{path}: {reason}")
    scans, _ = annotated_scans(index, annotations, None)
    if not scans:
        raise InputError(f"{dataset_dir}: none of its {len(index.series)} CT series is annotated")
    nodules: list[dict[str, Any]] = []
    with new_folder(output_dir) as folder:
        for scan, name in scans:
            nodules += _extract(scan, name, index.series[scan.series_instance_uid], folder, formats, level)
        manifest = {
            "format": "nodule-plugin masks",
            "version": 1,
            "level": level,
            "software": {"nodule_plugin": __version__},
            "licence": f"Derived from LIDC-IDRI, {LICENCE} ({LICENCE_URL})",
            "citation": list(CITATION),
            "nodules": nodules,
        }
        write_json(folder / MANIFEST, manifest)
    return nodules


def _extract(
    scan: Scan, name: str, series: Series, folder: Path, formats: Sequence[str], level: float
) -> list[dict[str, Any]]:
    slices = [read_file(item.path, pixels=False) for item in series.slices]
    geometry = series_geometry(series, slices)
    segments, nodules = [], []
    for number, cluster in enumerate(cluster_annotations(scan), start=1):
        mask, (planes, rows, columns) = consensus_mask(cluster, scan, level)
        first = int(slice_indices([scan.slice_z[planes.start]], series.slice_z)[0])
        if first + len(mask) > len(slices):
            raise InputError(
                f"series {scan.series_instance_uid}: slices with outlines are missing; get the series anew"
            )
        identity = f"{name}-N{number:02d}"
        uid = _uid("nodule", scan.series_instance_uid, identity, str(level))
        segments.append(Segment(identity, uid, mask, (first, rows.start, columns.start)))
        (consensus,) = form_consensus(cluster)
        nodules.append(
            {
                "id": identity,
                "series_instance_uid": scan.series_instance_uid,
                "readers": len(cluster),
                "findings": consensus.findings.to_dict() if consensus.findings else None,
                "voxels": int(mask.sum()),
                "diameter_mm": longest_diameter_mm(mask.astype(np.float32), tuple(geometry.spacing)),
                "volume_mm3": float(mask.sum() * geometry.spacing.prod()),
            }
        )
    if not segments:
        return []
    if "nifti" in formats:
        (folder / f"{name}.nii.gz").write_bytes(_nifti(segments, geometry))
    now = datetime.now()  # of which the UIDs tell, too: a file with another date must not carry an old one
    for order, kind in enumerate(KINDS if "seg" in formats else (), start=1):
        made = segmentation(
            kind,
            slices,
            segments,
            None,
            series_instance_uid=_uid("series", scan.series_instance_uid, kind, str(level), now.isoformat()),
            series_number=1000 + order,
            sop_instance_uid=_uid("instance", scan.series_instance_uid, kind, str(level), now.isoformat()),
            instance_number=1,
            content_description="Where readers of LIDC-IDRI agree on a nodule",
            series_description=f"LIDC-IDRI nodules, {level:.0%} of the readers ({kind})",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            content_date=now.date(),
            content_time=now.time(),
        )
        made.ImageComments = ATTRIBUTION
        made.save_as(folder / f"{name}_{kind.lower()}.dcm", enforce_file_format=True)
    return nodules


def _nifti(segments: Sequence[Segment], geometry: Geometry) -> bytes:
    labels = np.zeros(geometry.shape, np.uint8)
    for number, segment in enumerate(segments, start=1):
        segment.put(labels, number)
    origin = {"nodules": [segment.label for segment in segments], "licence": ATTRIBUTION}
    description = b"LIDC-IDRI readers' consensus, CC BY 3.0"
    return encode_volume(labels.transpose(2, 1, 0), geometry.nifti_affine(), origin, description)


def _uid(*parts: str) -> str:
    return str(generate_uid(entropy_srcs=["nodule-plugin masks", *parts]))
