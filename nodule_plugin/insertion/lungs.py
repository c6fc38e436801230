"""Where a nodule may lie: the lungs of a CT, their surface and vessels, and random places among them.

The method is the classical one of thresholds and connected parts (Hu S, Hoffman EA, Reinhardt JM, "Automatic lung
segmentation for accurate quantitation of volumetric X-ray CT images", IEEE Trans Med Imaging 2001;20:490-498), on
voxels of about 2.5 mm, where noise matters less:

1. The body is the largest connected part above -500 HU, with what it encloses in each slice.
2. Air within it, below -500 HU, that reaches the edge of no slice; parts below 2 % of all of it are bowel and bubbles.
3. Less the large airways: what shows in a slice as a part of 40 to 700 mm2 and, over 20 mm or more of slices, lies
   within 40 mm of the body's middle.
4. Closed with a ball of 10 mm, so that vessels and what grows at the pleura belong to the lung, and holes filled.

Vessels (and all else that is dense) are what of the lung is above -600 HU. Pleura is the lung's whole surface, fissures
are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.host import Host

_PITCH_MM = 2.5
_TISSUE_HU, _VESSEL_HU = -500, -600
_LEAST_PART = 0.02
_AIRWAY_MM2, _AIRWAY_LENGTH_MM, _MIDDLE_MM = (40.0, 700.0), 20.0, 40.0
_CLOSING_MM = 10.0
_MANY = 10
"""Random places from which on progress is shown: a nodule is drawn at each that is tried."""


@dataclass(frozen=True, eq=False)
class Lungs:
    """Masks on coarse voxels.

    Attributes:
        body, lung, airway, vessel: (slices, rows, columns) bool.
        step: the host's voxels along each side of a coarse one.
        spacing: of the coarse voxels, mm.
    """

    body: np.ndarray
    lung: np.ndarray
    airway: np.ndarray
    vessel: np.ndarray
    step: np.ndarray
    spacing: np.ndarray

    def objection(self, index: np.ndarray) -> str | None:
        """Why a nodule cannot have its middle in a voxel of the host, in words; None where it can.

        Args:
            index: (slice, row, column), not rounded.
        """
        place = self._coarse(index)
        if (place < 0).any() or (place >= self.lung.shape).any():
            return "outside the series"
        where = tuple(place)
        if not self.body[where]:
            return "outside the body"
        if self.airway[where]:
            return "in a large airway"
        return None if self.lung[where] else "not in the lung"

    def covered(self, voxels: np.ndarray) -> float:
        """The fraction of some of the host's voxels that lies in the lung.

        Args:
            voxels: (N, 3) indices (slice, row, column).
        """
        return float(self.lung[tuple(self._coarse(voxels).T)].mean())

    def _coarse(self, index: np.ndarray) -> np.ndarray:
        return np.floor((np.asarray(index) + 0.5) / self.step).astype(int)

    def room(self, pleura_mm: float, vessel_mm: float) -> np.ndarray:
        """(N, 3) voxels of the host (slice, row, column; middles of coarse ones) so far from pleura and vessels."""
        free = ndimage.distance_transform_edt(np.pad(self.lung, 1), sampling=self.spacing)[1:-1, 1:-1, 1:-1] > pleura_mm
        if vessel_mm > 0 and self.vessel.any():
            free &= ndimage.distance_transform_edt(~self.vessel, sampling=self.spacing) > vessel_mm
        return np.argwhere(free) * self.step + (self.step - 1) / 2


def find_lungs(host: Host) -> Lungs:
    """The lungs of a series.

    Raises:
        InputError: if it shows none.
    """
    step = np.maximum(1, np.rint(_PITCH_MM / host.geometry.spacing).astype(int))
    spacing = host.geometry.spacing * step
    hu = _binned(np.where(host.padding, np.float32(-1024), host.hu), step)
    body = _largest(hu > _TISSUE_HU)
    for plane in body:
        ndimage.binary_fill_holes(plane, output=plane)
    air = _parts_inside(body & (hu < _TISSUE_HU))
    if not air.any():
        raise InputError("series: no lung is found in it; give a CT of the chest in Hounsfield units")
    airway = _airways(air, body, spacing)
    lung = _closed(air & ~airway, spacing) & body & ~airway
    for plane in lung:
        ndimage.binary_fill_holes(plane, output=plane)
    lung &= ~airway
    return Lungs(body, lung, airway, lung & (hu > _VESSEL_HU), step, spacing)


def random_places(
    lungs: Lungs,
    count: int,
    radius_mm: float,
    pleura_mm: float,
    vessel_mm: float,
    apart_mm: float,
    seed: int,
    accept: Callable[[np.ndarray], bool] = lambda index: True,
) -> list[np.ndarray]:
    """Middles of nodules, drawn evenly from where there is room for them.

    Args:
        lungs: of the host.
        count: how many.
        radius_mm: of the nodules.
        pleura_mm, vessel_mm: least distances from a nodule's surface to the lung's and to vessels.
        apart_mm: least distance between two middles.
        seed: the same one gives the same places.
        accept: of a place that keeps all distances, whether it is taken; another one is drawn where it is not.

    Returns:
        (slice, row, column) of each.

    Raises:
        InputError: if there are not so many places.
    """
    candidates = lungs.room(radius_mm + pleura_mm, radius_mm + vessel_mm if vessel_mm > 0 else 0.0)
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed)).numpy()
    in_mm = candidates * lungs.spacing / lungs.step
    chosen: list[int] = []
    apart = np.ones(len(candidates), dtype=bool)
    with tqdm(total=count, desc="places", disable=count < _MANY) as progress:
        for index in order.tolist():
            if len(chosen) == count:
                break
            if apart[index] and accept(candidates[index]):
                chosen.append(index)
                apart &= np.linalg.norm(in_mm - in_mm[index], axis=1) >= apart_mm
                progress.update()
    if len(chosen) < count:
        raise InputError(
            f"random: there is room for {len(chosen)} of {count} nodules of {2 * radius_mm:g} mm {pleura_mm:g} mm from"
            f" the pleura and {vessel_mm:g} mm from vessels; ask for fewer, smaller or nearer ones"
        )
    return [candidates[index] for index in chosen]


def _binned(hu: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Means over blocks of ``step`` voxels; the edges are repeated where they do not divide."""
    missing = -np.array(hu.shape) % step
    padded = np.pad(hu, [(0, count) for count in missing], mode="edge")
    shape = [size for whole, part in zip(padded.shape, step) for size in (whole // part, part)]
    return padded.reshape(shape).mean(axis=(1, 3, 5))


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax() if len(sizes) > 1 else mask


def _parts_inside(air: np.ndarray) -> np.ndarray:
    """Connected parts that reach the edge of no slice, without the small ones."""
    labels, _ = ndimage.label(air)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    for side in (0, -1):
        sizes[labels[:, side]] = 0
        sizes[labels[:, :, side]] = 0
    return (sizes > _LEAST_PART * sizes.sum())[labels]


def _airways(air: np.ndarray, body: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(air, in_plane)
    area = np.bincount(labels.ravel()) * spacing[1] * spacing[2]
    parts, count = ndimage.label(((area >= _AIRWAY_MM2[0]) & (area <= _AIRWAY_MM2[1]))[labels] & air)
    middle = np.flatnonzero(body.any(axis=(0, 1)))[[0, -1]].mean()
    boxes, centres = ndimage.find_objects(parts), ndimage.center_of_mass(parts, parts, range(1, count + 1))
    kept = [
        number
        for number, (box, centre) in enumerate(zip(boxes, centres), start=1)
        if (box[0].stop - box[0].start) * spacing[0] >= _AIRWAY_LENGTH_MM
        and abs(centre[2] - middle) * spacing[2] <= _MIDDLE_MM
    ]
    return np.isin(parts, kept)


def _closed(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Closing with a ball of :data:`_CLOSING_MM`, by distances; the volume is continued above and below."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = [(count, count) for count in np.ceil(_CLOSING_MM / spacing).astype(int) + 1]
    part = np.pad(np.pad(mask[box], [margin[0], (0, 0), (0, 0)], mode="edge"), [(0, 0), *margin[1:]])
    grown = ndimage.distance_transform_edt(~part, sampling=spacing) <= _CLOSING_MM
    shrunk = ndimage.distance_transform_edt(grown, sampling=spacing) > _CLOSING_MM
    closed = np.zeros_like(mask)
    closed[box] = shrunk[tuple(slice(low, -high) for low, high in margin)]
    return closed
