"""How the axes of a stored image lie in the patient, and the turn to the one way in which slices are shown.

Directions have nibabel's letters: R or L, A or P, I or S, for each stored axis the side towards which it runs. Shown is
"LPS", DICOM's own directions for a patient on the back: columns run to the patient's left, rows to the back, slices to
the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel.orientations import aff2axcodes, apply_orientation, axcodes2ornt, ornt_transform

from nodule_plugin.errors import InputError

SHOWN = "LPS"
Pair = tuple[float, float]
"""(row, column)."""


def directions(affine: np.ndarray) -> str | None:
    """The directions of a volume's axes, such as "LPS"; None where the matrix gives an axis none.

    Args:
        affine: (4, 4), or (3, 3), from voxels to NIfTI's coordinates (RAS, mm).
    """
    square = np.eye(4)
    square[: len(affine), : len(affine)] = affine
    codes = [str(code) for code in aff2axcodes(square) if code] if np.isfinite(square).all() else []
    return "".join(codes) if len(codes) == 3 else None


def slice_directions(cosines: Sequence[float]) -> str:
    """The directions of an axial DICOM slice's columns and rows, and "S".

    Args:
        cosines: the slice's ImageOrientationPatient.
    """
    normal = np.cross(cosines[:3], cosines[3:])
    axes = np.column_stack([cosines[:3], cosines[3:], normal * np.sign(normal[2])])
    return directions(np.diag([-1.0, -1.0, 1.0]) @ axes) or SHOWN


def turned(voxels: np.ndarray, axes: str) -> np.ndarray:
    """A volume (three axes that run as ``axes`` says) with axes that run as :data:`SHOWN`; a view.

    Raises:
        InputError: as :func:`stored_axes` does.
    """
    stored_axes(axes)
    return apply_orientation(voxels, ornt_transform(axcodes2ornt(axes), axcodes2ornt(SHOWN)))


def shown(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume (slices, rows, columns) whose axes run as :data:`SHOWN`; a view.

    Args:
        volume: (slices, rows, columns) as stored.
        affine: from (column, row, slice) to NIfTI's coordinates; one that places no voxel leaves the volume as it is.
    """
    return turned(volume.transpose(2, 1, 0), directions(affine) or SHOWN).transpose(2, 1, 0)


def turned_slice(centre: Pair, spacing: Pair, shape: tuple[int, int], axes: str) -> tuple[Pair, Pair, tuple[int, int]]:
    """A point, the spacing and the shape of a stored axial slice, as they are once it is turned.

    Args:
        centre, spacing, shape: (row, column) as stored.
        axes: directions of its columns and its rows; what follows does not count.
    """
    along = {}
    for direction, middle, step, count in zip(axes, centre[::-1], spacing[::-1], shape[::-1]):
        along[direction in "AP"] = (count - 1 - middle if direction in "RA" else middle), step, count
    (row, row_step, rows), (column, column_step, columns) = along[True], along[False]
    return (row, column), (row_step, column_step), (rows, columns)


def stored_axes(axes: str) -> tuple[int, int, int]:
    """The stored axes that run from side to side, from front to back and from slice to slice.

    Raises:
        InputError: if ``axes`` does not name three such directions.
    """
    pairs = ("LR", "PA", "SI")
    if len(axes) != 3 or not all(sum(code in pair for code in axes) == 1 for pair in pairs):
        raise InputError(f"axes: L or R, P or A, and S or I are needed, in any order, not {axes!r}; run prepare again")
    x, y, z = (next(index for index, code in enumerate(axes) if code in pair) for pair in pairs)
    return x, y, z
