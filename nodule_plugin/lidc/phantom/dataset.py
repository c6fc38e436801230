"""A folder of phantom crops on disk, laid out as a folder of real crops is."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from nodule_plugin.files import new_folder
from nodule_plugin.findings import SCALES
from nodule_plugin.lidc.phantom.crop import Crop, render_crop
from nodule_plugin.lidc.phantom.provenance import phantom_uid, write_sidecar
from nodule_plugin.lidc.phantom.subjects import Subject, choose_subjects, load_subjects
from nodule_plugin.parallel import in_order

SCAN_MIDDLE = 255.5
"""Row and column at the origin of the patient's coordinates: the database does not know the scans' own origins."""


def write_phantom_crops(
    output_dir: str | Path, nodules: int = 300, seed: int = 0, subjects: Sequence[Subject] | None = None
) -> Path:
    """Draw phantoms and write them as ``images/*.nii.gz``, ``masks/*.nii.gz``, ``nodules.csv`` and ``dataset.json``.

    ``joblib.parallel_config`` says who draws. The nodules are spread over the ratings, see :func:`choose_subjects`.
    Patients get names of their own ("PHANTOM-0001"), one for each real patient; ``annotation_source`` in the table
    names the patient whose nodule was outlined. Positions in the table are DICOM's patient coordinates (LPS, mm), the
    files' affines NIfTI's (RAS).

    Args:
        output_dir: a folder that does not exist yet, or is empty. It appears only when it is complete.
        nodules: how many.
        seed: the same seed gives the same pixels on the same kind of processor; on others a few in a million differ by
            1 HU.
        subjects: choose among these; all of the database by default.

    Returns:
        ``output_dir``.

    Raises:
        InputError: if the folder is in use or there are fewer nodules than asked for.
    """
    output = Path(output_dir)
    with new_folder(output) as folder:
        chosen = choose_subjects(load_subjects() if subjects is None else subjects, nodules, seed)
        _write(folder, chosen, seed)
    return output


def _write(folder: Path, subjects: Sequence[Subject], seed: int) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    sources = sorted({subject.scan.patient_id for subject in subjects})
    patients = {source: f"PHANTOM-{number:04d}" for number, source in enumerate(sources, start=1)}
    counts = dict.fromkeys(sources, 0)
    rows = []
    crops = in_order(partial(_draw, seed=seed), subjects)
    for subject, crop in zip(subjects, tqdm(crops, "drawing phantoms", len(subjects), unit="nodule")):
        source = subject.scan.patient_id
        counts[source] += 1
        rows.append(_write_crop(folder, subject, crop, patients[source], counts[source], seed))
    with (folder / "nodules.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    write_sidecar(folder, seed, nodules=len(subjects))


def _draw(subject: Subject, seed: int) -> Crop:
    return render_crop(subject.scan, subject.cluster, subject.findings, subject.rng(seed))


def _write_crop(
    folder: Path, subject: Subject, crop: Crop, patient: str, number: int, seed: int
) -> dict[str, str | int | float]:
    column, row, index = crop.centre
    spacing = crop.spacing[0]
    corner = [(first - SCAN_MIDDLE) * spacing for first in crop.first]
    name = f"{patient}_R_{number}.nii.gz"
    affine = np.diag([-spacing, -spacing, crop.spacing[2], 1.0])
    affine[:3, 3] = [-corner[0], -corner[1], crop.z[0]]
    _save(crop.volume, affine, folder / "images" / name)
    _save(crop.mask, affine, folder / "masks" / name)
    ratings = subject.findings.to_dict()
    names = ["malignancy", *sorted(set(SCALES) - {"malignancy"})]
    return {
        "image": f"images/{name}",
        "patient_id": patient,
        "crop_id": number,
        "series_instance_uid": phantom_uid("series", subject.scan.series_instance_uid, seed),
        "x_mm": round(corner[0] + column * spacing, 6),
        "y_mm": round(corner[1] + row * spacing, 6),
        "z_mm": round(float(crop.z[index]), 6),
        "diameter_mm": round(subject.diameter_mm, 6),
        **{rating: ratings.get(rating, math.nan) for rating in names},
        "readers": len(subject.cluster),
        "annotation_source": subject.scan.patient_id,
    }


def _save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = b"SYNTHETIC nodule phantom, not for diagnosis"
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
