"""Small synthetic chests as DICOM series, in every geometry and encoding that a host can have, and nodules to paste."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from crops_folder import ROW, write_volume
from dicom_files import compress, make_slice
from scipy.ndimage import gaussian_filter

from nodule_plugin.lidc.pydicom_versions import save_conforming

SIZE, SLICES, PIXEL_MM, STEP_MM = 112, 16, 1.6, 2.5
FINDINGS = {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 6}
LEFT_LUNG = (23.0, 0.0)
"""(x, y) of a lung's middle, mm from the chest's."""


def chest(shape: tuple[int, int, int] = (SLICES, SIZE, SIZE), pixel_mm: float = PIXEL_MM, seed: int = 0) -> np.ndarray:
    """(slices, rows, columns) HU: a body with two lungs in air, with vessels and noise in them."""
    rows, columns = (((np.arange(size) - (size - 1) / 2) * pixel_mm) for size in shape[1:])
    y, x = rows[:, None], columns[None, :]
    plane = np.where((x / 75) ** 2 + (y / 55) ** 2 < 1, 40.0, -1000.0)
    for middle in (-30, 30):
        plane[((x - middle) / 24) ** 2 + (y / 38) ** 2 < 1] = -860
    plane[(np.abs(x - 42) < 1.6) & (np.abs(y + 10) < 1.6)] = 30
    generator = np.random.default_rng(seed)
    noise = gaussian_filter(generator.normal(0, 45, shape), (0, 0.6, 0.6))
    return np.repeat(plane[None], shape[0], axis=0) + noise


def write_host(
    folder: Path,
    hu: np.ndarray | None = None,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    pixel_mm: float = PIXEL_MM,
    step: tuple[float, float, float] = (0, 0, STEP_MM),
    slopes: tuple[float, ...] = (1.0,),
    intercept: float = -1024,
    signed: bool = False,
    bits: int = 12,
    syntax: str | None = None,
    **elements: Any,
) -> list[Path]:
    """Write a series; slice n lies n steps from the first, whose corner is so placed that the chest's middle is at 0.

    Args:
        folder: for ``NNNNNN.dcm``.
        hu: by slice; a chest by default.
        orientation: ImageOrientationPatient.
        pixel_mm, step: of the geometry.
        slopes: of the slices, by turns.
        intercept, signed, bits: of stored values.
        syntax: that pixels are compressed with.
        elements: replace or add attributes.
    """
    hu = chest(pixel_mm=pixel_mm) if hu is None else hu
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    middle = (np.array(hu.shape) - 1) / 2
    corner = -(middle[0] * np.array(step) + pixel_mm * (middle[1] * along_column + middle[2] * along_row))
    folder.mkdir(parents=True, exist_ok=True)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    paths = []
    for index, plane in enumerate(hu):
        slope = slopes[index % len(slopes)]
        stored = np.clip(np.rint((plane - intercept) / slope), low, high).astype("<i2" if signed else "<u2")
        given = {
            "PatientName": "Doe^Jane",
            "PatientBirthDate": "19500101",
            "StudyDate": "20200102",
            "AccessionNumber": "A1",
            "ReferringPhysicianName": "Physician^Referring",
            "InstitutionName": "Hospital",
            "FrameOfReferenceUID": "2.25.1002",
            "SeriesNumber": 3,
            "KVP": 120,
            "ConvolutionKernel": "STANDARD",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "InstanceNumber": index + 1,
            "ImagePositionPatient": [round(value, 6) for value in (corner + index * np.array(step)).tolist()],
            "ImageOrientationPatient": list(orientation),
            "PixelSpacing": [pixel_mm, pixel_mm],
            "SliceThickness": float(np.linalg.norm(step)),
            "Rows": hu.shape[1],
            "Columns": hu.shape[2],
            "BitsStored": bits,
            "HighBit": bits - 1,
            "PixelRepresentation": int(signed),
            "RescaleSlope": slope,
            "RescaleIntercept": intercept,
        }
        dataset = make_slice(0.0, **(given | elements))
        dataset.PixelData = stored.tobytes()
        paths.append(folder / f"{(7 * index + 3) % 101:06d}.dcm")
        save_conforming(dataset, paths[-1])
        if syntax is not None:
            compress(paths[-1], syntax)
    return paths


def round_crops(folder: Path) -> Path:
    """Three round nodules of 8, 10 and 12 mm with their masks, laid out as a folder of crops."""
    shape, spacing = (44, 44, 28), (0.8, 0.8, 1.25)
    axes = [(np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    rows = []
    for number, diameter in enumerate((8, 10, 12)):
        inside = distance <= diameter / 2
        hu = np.where(inside, 30.0, -860.0) + np.random.default_rng(number).normal(0, 15, shape)
        write_volume(folder / "images" / f"n{number}.nii.gz", hu.astype(np.int16), spacing)
        write_volume(folder / "masks" / f"n{number}.nii.gz", inside.astype(np.uint8), spacing)
        rows.append({**ROW, **FINDINGS, "image": f"images/n{number}.nii.gz", "diameter_mm": diameter})
    with (folder / "nodules.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder
