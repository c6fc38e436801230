"""A small folder of crops, written for tests."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform

ROW = {
    "patient_id": "P1",
    "series_instance_uid": "2.25.1",
    "diameter_mm": "6.5",
    "malignancy": "3",
    "calcification": "6",
    "internal_structure": "1",
    "lobulation": "1",
    "margin": "4",
    "sphericity": "4",
    "spiculation": "1",
    "subtlety": "5",
    "texture": "5",
    "readers": "3",
}


def write_volume(
    path: Path, voxels: np.ndarray, spacing: tuple[float, float, float] = (0.5, 0.7, 2.0), axes: str = "LPS"
) -> None:
    """A NIfTI file of ``voxels``, whose axes run to the patient's left, back and head; stored as ``axes`` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
    if axes != "LPS":
        image = image.as_reoriented(ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes)))
    nib.save(image, path)


def write_crops(folder: Path, count: int = 1, masks: bool = True, **cells: Any) -> Path:
    """Crops of (20, 30, 5) voxels, masks centred on column 8, row 12, slice 3; ``cells`` are the same in all rows."""
    rows = []
    for number in range(count):
        name = f"P{number}_R_1.nii.gz"
        write_volume(folder / "images" / name, np.full((20, 30, 5), -700 + number, np.int16))
        if masks:
            mask = np.zeros((20, 30, 5), np.uint8)
            mask[6:11, 10:15, 2:5] = 1
            write_volume(folder / "masks" / name, mask)
        rows.append({"image": f"images/{name}", **ROW, "patient_id": f"P{number}", **cells})
    folder.mkdir(exist_ok=True)
    with (folder / "nodules.csv").open("w", newline="") as file:
        columns = [name for name in rows[0] if rows[0][name] is not None] if rows else ["image", *ROW]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder
