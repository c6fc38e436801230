"""Marks in files: pictures, NIfTI volumes and DICOM instances."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nodule_plugin.data.nifti import NIFTI, open_nifti, read_voxels
from nodule_plugin.data.orientation import SHOWN, shown, slice_directions
from nodule_plugin.data.picture import PICTURES, read_picture
from nodule_plugin.data.transforms import read_slice
from nodule_plugin.data.window import hu_to_unit
from nodule_plugin.errors import InputError
from nodule_plugin.provenance.codebook import PUBLIC, MarkKey
from nodule_plugin.provenance.detection import WINDOWS_HU, Detection, can_carry, detect, detect_all, p_text
from nodule_plugin.provenance.inversion import Inversion, bundled_inversion
from nodule_plugin.provenance.parity_mark import GENERATED, INSERTED, detect_parity
from nodule_plugin.weights import some

PROJECT = "nodule-plugin"
LOOKED_AT = 16
"""Images of a set, before an evaluation or a training."""
_NUMBERS, _NOISE = 1 / 4, 3 / 4
"""Of the chance of a false alarm; numbers that carry a mark leave less doubt."""
_EXACT = 1e-3
"""Of a grey: farther from a whole number than that is none of eight bits."""
_SHOWN_AFTER_S = 5.0
"""A picture is done sooner; a volume takes about a second a slice."""

logger = logging.getLogger(__name__)


def detect_file(path: str | Path, inversion: Inversion, key: MarkKey = PUBLIC, parts: bool = True) -> Detection:
    """The likeliest mark in a file, in whole numbers or in the noise that images are made from.

    Its p-value is corrected for the number of slices and for all kinds of marks. Whole numbers are looked at first:
    they need no model, and where they carry a mark a volume's slices need not be looked at one by one.

    Args:
        path: a picture, a NIfTI file of any number of slices, or (whatever it is called) one DICOM instance. Hounsfield
            units are cut off at -1000 and 400, as pictures are.
        inversion: of the model that it may be from.
        key: of the mark.
        parts: see :func:`nodule_plugin.provenance.detection.detect`.

    Raises:
        InputError: if the file is missing or cannot be read as an image.
    """
    in_numbers = _in_numbers(Path(path), key)
    if in_numbers.found:
        return in_numbers
    findings, possible = [], in_numbers.possible
    for image in tqdm(_slices(Path(path)), desc="slices", delay=_SHOWN_AFTER_S, leave=False):
        findings.append(detect(image, inversion, key, parts))
        possible = possible or can_carry(image, inversion)
    best = _corrected(min(findings, key=lambda one: one.log10_p), len(findings) / _NOISE)
    return replace(min(best, in_numbers, key=lambda one: one.log10_p), possible=possible)


def _corrected(detection: Detection, tried: float) -> Detection:
    return replace(detection, log10_p=min(detection.log10_p + float(np.log10(tried)), 0.0))


def _in_numbers(path: Path, key: MarkKey) -> Detection:
    """The likeliest mark in a file's numbers; the noise is still to be looked at."""
    name = path.name.lower()
    if name.endswith(PICTURES):
        grey = (read_picture(path) + 1) * 127.5
        whole = np.rint(grey)
        numbers = whole if np.abs(grey - whole).max() < _EXACT else grey
        return _corrected(detect_parity(numbers[None], GENERATED, key, turned=True), 1 / _NUMBERS)
    if name.endswith(NIFTI):
        return detect_in_hu(shown(_volume(path).transpose(2, 1, 0), open_nifti(path).affine), key)
    if path.is_file() and not _is_dicom(path):
        return Detection(0.0, None, key.name, possible=False)
    return detect_in_hu(read_slice(path, None, _axes(path))[None], key)


def detect_in_hu(volume: np.ndarray, key: MarkKey = PUBLIC) -> Detection:
    """The likeliest mark in whole Hounsfield units: of an inserted nodule, or of a generated image, a single slice.

    Args:
        volume: (slices, rows, columns) in the orientation of :data:`nodule_plugin.data.orientation.SHOWN`.
        key: of the mark.

    Returns:
        The finding, as :func:`detect_file` has it before it looks at the noise.
    """
    lattices = (INSERTED, GENERATED) if len(volume) == 1 else (INSERTED,)
    findings = [detect_parity(volume, lattice, key) for lattice in lattices]
    return _corrected(min(findings, key=lambda one: one.log10_p), len(findings) / _NUMBERS)


def _axes(path: Path) -> str:
    """How the axes of a DICOM instance run; as they are shown where its header does not say."""
    from nodule_plugin.lidc.dicom_header import BrokenFile, read_slice_header

    with contextlib.suppress(BrokenFile):
        if header := read_slice_header(path):
            return slice_directions(header.orientation)
    return SHOWN


def _slices(path: Path) -> Iterator[np.ndarray]:
    """(rows, columns) in [-1, 1] of each slice."""
    name = path.name.lower()
    if name.endswith(PICTURES):
        yield read_picture(path)
    elif name.endswith(NIFTI):
        volume = _volume(path)
        through = volume.shape.index(1) if 1 in volume.shape else 2  # one slice, however it lies
        for plane in np.moveaxis(volume, through, 0):
            yield hu_to_unit(plane.T)
    elif path.is_file() and not _is_dicom(path):
        known = ", ".join((*PICTURES, *NIFTI))
        raise InputError(f"image: {path} is no DICOM file, and its name ends on none of {known}; convert it to PNG")
    else:
        yield hu_to_unit(read_slice(path, None))


def _volume(path: Path) -> np.ndarray:
    """(x, y, z) of a NIfTI file, as stored; one slice has an axis of one."""
    voxels = read_voxels(path)
    if voxels.ndim not in (2, 3) or not voxels.size:
        raise InputError(f"image: {path} has shape {voxels.shape}; give one slice, or a volume (x, y, z)")
    if not np.isfinite(voxels).all():
        raise InputError(f"image: {path} has values that are not finite; give Hounsfield units")
    return voxels.reshape(*voxels.shape, *(1,) * (3 - voxels.ndim))


def _is_dicom(path: Path) -> bool:
    from nodule_plugin.lidc.dicom_header import has_dicom_preamble  # pictures need no DICOM reader

    return has_dicom_preamble(path)


def described(path: str | Path, detection: Detection, as_json: bool = False) -> str:
    """A line on what was found in a file."""
    p_value = p_text(detection.log10_p)
    if as_json:
        about = {"file": str(path), "marked": detection.found, "p_value": p_value, "key": detection.key}
        about |= {} if detection.possible else {"possible": False}
        if detection.found:
            about |= {"project": PROJECT, "model": detection.payload, "part_of": detection.part_of}
            about |= {"inserted": detection.inserted}
        return json.dumps(about)
    if not detection.possible:
        return f"{path}: too small, or too much of one grey, to carry a mark; nothing can be said"
    if not detection.found:
        return f"{path}: no mark found by the {detection.key} key (p {p_value})"
    part = f", a part of {detection.part_of} x {detection.part_of} pixels" if detection.part_of else ""
    weights = "weights that cannot be read" if detection.payload is None else f"weights {detection.payload}..."
    model = f"by {PROJECT}, {weights}, {detection.key} key"
    what = "holds an inserted nodule, marked as synthetic" if detection.inserted else "marked as synthetic"
    return f"{path}: {what} (p {p_value}): {model}{part}"


def refuse_marked(
    items: Iterable[Mapping[str, Any]], models: str | Path, allowed: bool = False
) -> list[Mapping[str, Any]]:
    """Items of an evaluation's real images, unless some of them say of themselves that they are synthetic.

    Files of a folder are looked at as a whole, for the public marks in numbers and in the noise of the bundle's small
    model: up to :data:`LOOKED_AT` of them, evenly spaced. A data list's regions of interest are not.

    Args:
        items: see :func:`nodule_plugin.data.evaluation_images.real_items`.
        models: the bundle's folder of that name.
        allowed: take them all the same.

    Returns:
        The items.

    Raises:
        InputError: if there is a marked one and it is not allowed.
    """
    items = list(items)
    files = _some([] if allowed else [item["image"] for item in items if "centre" not in item])
    marked = [file for file in files if _in_numbers(Path(file), PUBLIC).found]
    images = [(file, image) for file in files if file not in marked for image in _slices(Path(file))]
    marked += dict.fromkeys(_looked_at(images, models, WINDOWS_HU))
    if marked:
        raise InputError(
            f"real_dir: {len(marked)} of {len(files)} images carry the mark of synthetic ones, {marked[0]} for one; "
            "leave them out, or give allow_marked true where the comparison is meant"
        )
    return items


def warn_of_marked(
    items: Sequence[dict[str, Any]], models: str | Path, silent: bool = False
) -> Sequence[dict[str, Any]]:
    """Items to learn from, with a warning where their slices carry a public mark, in numbers or of the bundle's model.

    A model that learns from generated images forgets what is rare (Shumailov I et al., Nature 2024;631:755-759). Slices
    are looked at as a whole, up to :data:`LOOKED_AT` of them, evenly spaced; a file that cannot be read is left to the
    training's own errors.

    Args:
        items: of a data list, see :func:`nodule_plugin.data.datalist.load_datalist`.
        models: the bundle's folder of that name.
        silent: look at nothing: another process does, or the model is to learn from generated images.

    Returns:
        The items.
    """
    slices = [] if silent else _readable(_some(items))
    marked = [name for name, hu in slices if detect_in_hu(hu[None]).found]
    left = [(name, hu_to_unit(hu)) for name, hu in slices if name not in marked]
    marked += _looked_at(left, models, WINDOWS_HU[:1])
    if marked:
        logger.warning(
            "%d of %d training images looked at carry the mark of synthetic images (%s): leave them out, unless the "
            "model is to learn from generated images (allow_marked true)",
            *(len(marked), len(slices), some(marked)),
        )
    return items


def _some(of: Sequence[Any]) -> list[Any]:
    """At most :data:`LOOKED_AT`, evenly spaced."""
    return [of[index] for index in np.unique(np.linspace(0, len(of) - 1, LOOKED_AT).astype(int))] if of else []


def _looked_at(
    images: Sequence[tuple[Any, np.ndarray]], models: str | Path, windows_hu: Sequence[tuple[float, float]]
) -> list[Any]:
    """Names, the first of each pair, of images whose noise is marked; without any, no model is loaded."""
    if not images:
        return []
    found = detect_all([image for _, image in images], bundled_inversion(models), PUBLIC, windows_hu)
    return [name for (name, _), one in zip(images, found) if one.found]


def _readable(items: Iterable[Mapping[str, Any]]) -> list[tuple[str, np.ndarray]]:
    """Identifier and slice, (rows, columns) Hounsfield units, of those that can be read."""
    slices = []
    for item in items:
        with contextlib.suppress(InputError):
            hu = read_slice(Path(item["image"]), item["slice_index"], item.get("axes", SHOWN))
            slices.append((str(item["id"]), hu))
    return slices
