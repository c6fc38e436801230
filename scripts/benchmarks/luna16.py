"""Patches around LUNA16's candidates: reading them, and nodules put into their middle."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from nodule_plugin.insertion.block import Block
from nodule_plugin.insertion.host import Geometry, Host
from nodule_plugin.insertion.place import Lesion, Place, fit_place
from nodule_plugin.insertion.sources import NoduleSource

PARTS = 5
SHOWN_HU = (-1000, 400)
"""Window of the patches."""
SCANS, LISTED_ROWS, LISTED_NONE = 888, 551065, 549714
"""Of LUNA16's candidates.csv."""
SPACING_MM = (2.0, 0.7, 0.7)
"""Of a stack of patches, which do not say it: the model's own distance between slices, LIDC-IDRI's median pixel."""
REPEATS = 20
"""Of a patch."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Patches in the list's order.

    Attributes:
        pixels: (N, 50, 50) in [-1, 1].
        nodule: (N,) bool.
        row: (N,) of LUNA16's list.
        tables: JPEG quantisation of the patches.
    """

    pixels: np.ndarray
    nodule: np.ndarray
    row: np.ndarray
    tables: Any

    @property
    def part(self) -> np.ndarray:
        """(N,) which of :data:`PARTS` stretches."""
        return self.row * PARTS // LISTED_ROWS

    @property
    def stretch(self) -> np.ndarray:
        """(N,) which stretch of the list, as long as a mean scan."""
        return self.row * SCANS // LISTED_ROWS

    @property
    def worth_scans(self) -> float:
        """How many scans have as many candidates without a nodule as there are patches."""
        return SCANS * float((~self.nodule).sum()) / LISTED_NONE


def read_candidates(folder: Path) -> Candidates:
    """The patches, but for those that a scan's edge cuts."""
    with (folder / "candidates.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["candidate_index"]))
    images = [Image.open(folder / row["image"]) for row in rows]
    whole = [index for index, image in enumerate(images) if image.size == images[0].size]
    return Candidates(
        np.stack([np.asarray(images[index].convert("L"), dtype=np.float32) / 127.5 - 1 for index in whole]),
        np.array([rows[index]["nodule"] == "1" for index in whole]),
        np.array([int(rows[index]["candidate_index"]) for index in whole]),
        images[0].quantization,  # type: ignore[attr-defined]
    )


def patch_host(hu: np.ndarray) -> Host:
    """A patch, (H, W) Hounsfield units, repeated: all that it shows runs straight through the stack."""
    matrix = np.zeros((4, 4))
    matrix[[2, 1, 0, 3], range(4)] = *SPACING_MM, 1
    header = Dataset()
    header.RescaleSlope, header.RescaleIntercept = 1, 0
    return Host([header] * REPEATS, [hu] * REPEATS, Geometry(matrix, (REPEATS, *hu.shape), SPACING_MM[0]))


def middle_place(
    host: Host, lesion: Lesion, seed: int, source: NoduleSource, draw: Callable[[float], np.ndarray]
) -> Place:
    """A nodule in the middle of a host, which need not be lung."""
    centre = host.geometry.to_patient((np.array(host.geometry.shape) - 1) / 2)
    block = Block.around(centre, host.geometry, source.grid.spacing_mm, source.grid.shape)
    return fit_place(lesion, seed, centre, block, draw)
