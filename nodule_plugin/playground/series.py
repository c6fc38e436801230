"""A CT series to look at, and to put a nodule into as ``nodule insert`` does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nodule_plugin.data.nifti import read_volume
from nodule_plugin.insertion.host import read_host
from nodule_plugin.insertion.lesions import read_lesions
from nodule_plugin.insertion.lungs import find_lungs, random_places
from nodule_plugin.insertion.place import Lesion
from nodule_plugin.insertion.run import MANIFEST, Insertion
from nodule_plugin.insertion.sources import MaskDrawer, NoduleSource
from nodule_plugin.playground.drawing import Order
from nodule_plugin.playground.viewer import image

DIAMETER_MM = 10.0
"""Of the nodule that is offered at first."""
_START_MARGIN_MM = 2.0

Position = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Inserted:
    """What one insertion made.

    Attributes:
        packed: the zip of all that was written.
        slices: number of a slice that changed -> (rows, columns) Hounsfield units, int16, and the nodule's mask, bool.
        nodule: as the manifest has it.
    """

    packed: Path
    slices: Mapping[int, tuple[np.ndarray, np.ndarray]]
    nodule: dict[str, Any]

    @property
    def middle(self) -> int:
        """The slice that shows most of the nodule."""
        return max(self.slices, key=lambda number: int(self.slices[number][1].sum()))


class HostSeries:
    """A series, and where nodules' pixels can come from.

    Args:
        folder: of the series' DICOM files.
        sources: name for the visitor -> source and what draws its masks.

    Raises:
        InputError: if the series cannot be used (see :func:`nodule_plugin.insertion.host.read_host`), shows no lung or
            has no room for a nodule in it.
    """

    def __init__(self, folder: Path, sources: Mapping[str, tuple[NoduleSource, MaskDrawer]]) -> None:
        host = read_host(folder)
        self.folder, self.sources, self.geometry = folder, dict(sources), host.geometry
        self.hu = np.rint(host.hu).astype(np.int16)
        margin = _START_MARGIN_MM
        (place,) = random_places(find_lungs(host), 1, DIAMETER_MM / 2, margin, margin, 0.0, seed=0)
        self.start: Position = self.position(*place)

    def position(self, number: float, row: float, column: float) -> Position:
        """A voxel's middle in the patient, (x, y, z) mm."""
        x, y, z = np.round(self.geometry.to_patient([number, row, column]), 1).tolist()
        return x, y, z

    def number(self, position: Position) -> int:
        """The slice nearest to a place in the patient, from 0."""
        return int(np.clip(np.rint(self.geometry.to_voxel(position)[0]), 0, len(self.hu) - 1))

    def images(
        self, number: int, position: Position, diameter_mm: float, inserted: Inserted | None = None
    ) -> list[dict[str, Any]]:
        """A slice as the viewer takes it: with the place outlined, and after an insertion with the nodule.

        Args:
            number: of the slice, from 0.
            position, diameter_mm: of a ball that is outlined where it crosses the slice.
            inserted: None before the first insertion.
        """
        plane = self.hu[number]
        voxels = np.stack([np.full(plane.shape, number), *np.indices(plane.shape)], axis=-1)
        ball = np.linalg.norm(self.geometry.to_patient(voxels) - position, axis=-1) <= diameter_mm / 2
        before = image(plane, f"slice {number + 1}, before", mask=ball)
        if inserted is None:
            return [before]
        after, mask = inserted.slices.get(number, (plane, np.zeros(plane.shape, bool)))
        changed = "SYNTHETIC nodule" if number in inserted.slices else "not changed"
        return [before, image(after, f"slice {number + 1}, after: {changed}", mask=mask)]

    def insert(self, order: Order, position: Position, diameter_mm: float, source: str, folder: Path) -> Inserted:
        """Put a nodule into the series and pack what is written.

        Args:
            order: findings or prompt, guidance scale, steps and seed.
            position, diameter_mm: where, and how large.
            source: one of :attr:`sources`.
            folder: empty; the zip lies beside it.

        Raises:
            InputError: naming what cannot be, see :class:`nodule_plugin.insertion.run.Insertion`.
        """
        pixels, draw_mask = self.sources[source]
        insertion = Insertion(pixels, draw_mask, order.guidance, order.steps)
        insertion(self.folder, _lesions(order, position, diameter_mm), [order.seed], folder)
        (written,) = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["series"]
        hu, mask = (read_volume(folder / written[name]).voxels.transpose(2, 1, 0) for name in ("volume", "mask"))
        slices = {
            number: (np.rint(after).astype(np.int16), inside > 0)
            for number, (after, inside) in enumerate(zip(hu, mask))
            if (np.rint(after) != self.hu[number]).any()
        }
        return Inserted(Path(shutil.make_archive(str(folder), "zip", folder)), slices, written["nodules"][0])


def _lesions(order: Order, position: Position, diameter_mm: float) -> list[Lesion]:
    if order.prompt is not None:
        return read_lesions(position=position, diameter_mm=diameter_mm, prompt=order.prompt)
    return read_lesions(position=position, diameter_mm=diameter_mm, findings=order.findings, template=order.template)
