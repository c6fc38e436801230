"""Crops with masks for tests: bright balls in dark lung."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from crops_folder import write_crops, write_volume

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.datalist import build_datalist, load_datalist, write_datalist

SPACING = (0.7, 0.7, 2.0)
"""(x, y, z) mm."""


def ball(radius_mm: float, shape: tuple[int, int, int] = (44, 44, 7)) -> np.ndarray:
    """A mask (x, y, z) of a ball in the middle."""
    axes = [(np.arange(count) - (count - 1) / 2) * step for count, step in zip(shape, SPACING)]
    return sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) <= radius_mm**2


def write_balls(folder: Path, radii_mm: list[float], hu: list[float], split: tuple[int, int, int] = (1, 0, 0)) -> Path:
    """A data list of one ball for each patient; the lung around it has -850 HU, and slices end with the ball."""
    write_crops(folder, len(radii_mm), diameter_mm="8")
    for number, (radius, inside) in enumerate(zip(radii_mm, hu)):
        mask = ball(radius)
        touched = np.flatnonzero(mask.any((0, 1)))
        mask = mask[:, :, touched[0] : touched[-1] + 1]
        name = f"P{number}_R_1.nii.gz"
        write_volume(folder / "masks" / name, mask.astype(np.uint8), SPACING)
        write_volume(folder / "images" / name, np.where(mask, inside, -850).astype(np.int16), SPACING)
    content = build_datalist(nodules_from_crops(folder), ratios=split)
    return write_datalist(content, folder / "datalist.json")


def ball_items(folder: Path, radii_mm: list[float], hu: list[float]) -> list[dict[str, Any]]:
    """The training items of :func:`write_balls`."""
    return load_datalist(write_balls(folder, radii_mm, hu), "training")
