"""What the pages' viewer, ``web/viewer.js``, takes."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation

_jobs = itertools.count(1)


def next_job() -> int:
    """A number that no job had before: the viewer keeps what it shows as long as that stays."""
    return next(_jobs)


def shown(
    job: int, window_hu: Sequence[float], images: Sequence[dict[str, Any]], note: str, total: int | None = None
) -> dict[str, Any]:
    """All that the viewer shows.

    Args:
        job: that the images belong to.
        window_hu: (lower, upper) Hounsfield units of "as generated".
        images: each of :func:`image`.
        note: what is going on.
        total: how many images there will be; None for those that are there.
    """
    given = {"job": job, "window_hu": list(window_hu), "images": list(images), "note": note}
    return given | {"total": len(images) if total is None else total}


def image(hu: np.ndarray, caption: str, warning: str = "", mask: np.ndarray | None = None) -> dict[str, Any]:
    """One image.

    Args:
        hu: (rows, columns) Hounsfield units, rounded here.
        caption, warning: below it.
        mask: (rows, columns) bool, to be outlined.
    """
    rows, columns = hu.shape
    given = {"caption": caption, "warning": warning, "rows": rows, "columns": columns}
    if mask is not None:
        given["outline"] = np.flatnonzero(binary_dilation(mask) & ~mask).tolist()
    return given | {"hu": base64.b64encode(np.rint(hu).astype("<i2").tobytes()).decode()}
