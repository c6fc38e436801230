"""Nodules into the voxels of a CT series, whatever is written of it then. Needs no highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nodule_plugin import __version__
from nodule_plugin.data.generated import NOTICE
from nodule_plugin.data.nifti import encode_volume
from nodule_plugin.data.orientation import shown
from nodule_plugin.insertion.blending import insert
from nodule_plugin.insertion.host import Host
from nodule_plugin.insertion.lesions import place_lesions
from nodule_plugin.insertion.lungs import find_lungs
from nodule_plugin.insertion.place import Lesion, Place
from nodule_plugin.insertion.sources import MaskDrawer, NoduleSource
from nodule_plugin.provenance.parity_mark import ParityMark, voxel_mark


@dataclass(frozen=True, eq=False)
class InsertedVolume:
    """A host's voxels with nodules in them.

    Attributes:
        host: as it was.
        stored: (rows, columns) of each slice, as the host's files would store them.
        places: of the nodules.
        requests: the nodules as manifest and report have them.
        settings: what they share, see :meth:`VoxelInsertion.settings_for`.
    """

    host: Host
    stored: Sequence[np.ndarray]
    places: Sequence[Place]
    requests: Sequence[dict[str, Any]]
    settings: dict[str, Any]

    @cached_property
    def hu(self) -> np.ndarray:
        """(slices, rows, columns) float32 Hounsfield units, as rounded for storing."""
        return self.host.rescaled(self.stored)

    @property
    def labels(self) -> np.ndarray:
        """(slices, rows, columns) uint8: the number, from 1, of the nodule that fills half a voxel or more; or 0."""
        labels = np.zeros(self.host.hu.shape, np.uint8)
        for number, place in enumerate(self.places, start=1):
            labels[place.box][place.mask >= 0.5] = number
        return labels

    @property
    def changed_voxels(self) -> int:
        """How many differ from the host's."""
        return int(np.count_nonzero(self.hu != self.host.hu))

    def nifti(self, kind: str) -> bytes:
        """A compressed NIfTI file: ``"volume"`` (int16 where all Hounsfield units are whole) or ``"mask"``."""
        voxels = self.labels
        if kind == "volume":
            whole = self.hu.astype(np.int16)
            voxels = whole if (whole == self.hu).all() else self.hu
        origin = {"notice": NOTICE, **self.settings, "requests": self.requests}
        return encode_volume(voxels.transpose(2, 1, 0), self.host.geometry.nifti_affine(), origin, compression=1)


@dataclass(frozen=True)
class VoxelInsertion:
    """How nodules are put into voxels.

    Args:
        source: of their pixels.
        draw_mask: of their shape.
        guidance_scale, steps: of the source's sampling.
        coordinates, pleura_mm, vessel_mm: see :func:`nodule_plugin.insertion.lesions.place_lesions`.
        mark: whether the voxels that change are to carry a mark (:mod:`nodule_plugin.provenance.parity_mark`).
        mark_key: see :func:`nodule_plugin.provenance.codebook.read_key`.
    """

    source: NoduleSource
    draw_mask: MaskDrawer
    guidance_scale: float = 3.0
    steps: int = 25
    coordinates: str = "patient"
    pleura_mm: float = 2.0
    vessel_mm: float = 1.0
    mark: bool | str = True
    mark_key: str | Path | None = None

    def settings_for(self, host: Host) -> dict[str, Any]:
        """What all nodules in a host share, as manifests hold it.

        Raises:
            InputError: if the key's file cannot be used.
        """
        mark = self._mark(host)
        name, digest, revision = (self.source.model[key] for key in ("name", "hash", "revision"))
        return {
            "model": {"base_model": name, "weights_sha256": digest, "revision": revision},
            "num_inference_steps": self.steps,
            "window_hu": list(self.source.grid.window_hu),
            "software": {"nodule_plugin": __version__},
            "mark": mark and mark.described,
        }

    def _mark(self, host: Host) -> ParityMark | None:
        """None where none is wanted, or a host's steps are no whole Hounsfield units."""
        mark = voxel_mark(self.mark, self.mark_key, self.source.model["hash"])
        return mark if host.has_whole_hu else None

    def place(self, host: Host, lesions: Sequence[Lesion], seeds: Sequence[int]) -> list[list[Place]]:
        """Lesions in a host, for each seed, all checked.

        Raises:
            InputError: as :func:`nodule_plugin.insertion.lesions.place_lesions` does.
        """
        lungs = find_lungs(host)
        rules = (self.coordinates, self.pleura_mm, self.vessel_mm)
        return [place_lesions(lesions, host, lungs, self.source, self.draw_mask, seed, *rules) for seed in seeds]

    def insert(self, host: Host, places: Sequence[Place]) -> InsertedVolume:
        """The host with a nodule at each place.

        Raises:
            InputError: if the source cannot make one.
        """
        hu = host.hu.copy()
        for place in places:
            insert(hu, place, host, self.source, self.guidance_scale, self.steps)
        requests = [_described(place, host) | {"guidance_scale": self.guidance_scale} for place in places]
        stored = host.to_stored(hu, self._parity(host, places))
        return InsertedVolume(host, stored, places, requests, self.settings_for(host))

    def _parity(self, host: Host, places: Sequence[Place]) -> np.ndarray | None:
        """See :meth:`Host.to_stored`: the mark's, wherever a nodule counts."""
        mark = self._mark(host)
        if mark is None:
            return None
        parity, marked = np.full(host.hu.shape, -1, np.int8), np.zeros(host.hu.shape, dtype=bool)
        for place in places:
            marked[place.box] |= (place.weight > 0) & ~host.padding[place.box]
        view, chosen = (shown(volume, host.geometry.nifti_affine()) for volume in (parity, marked))
        view[chosen] = mark.parity(view.shape)[chosen]
        return parity


def _described(place: Place, host: Host) -> dict[str, Any]:
    """A nodule as the manifest and the report have it."""
    findings, voxel = place.lesion.findings, host.geometry.to_voxel(place.centre)[::-1]
    return {
        "prompt": place.lesion.prompt,
        "findings": findings.to_dict() if findings else None,
        "seed": place.seed,
        "position_mm": np.round(place.centre, 3).tolist(),
        "voxel": np.round(voxel, 2).tolist(),
        "diameter_mm": place.lesion.diameter_mm,
        "measured_diameter_mm": place.measured_mm,
        "measured_volume_mm3": float(place.mask.sum(dtype=np.float64) * host.geometry.spacing.prod()),
    }
