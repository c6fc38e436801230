"""Between Hounsfield units and the range that networks and pictures use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nodule_plugin.errors import InputError

DEFAULT_WINDOW_HU = (-1000.0, 400.0)
"""(lower, upper) end of the lung window that the whole project uses unless told otherwise."""

_INT16 = np.iinfo(np.int16)


def checked_window(window_hu: Sequence[float], name: str = "window_hu") -> tuple[float, float]:
    """``window_hu`` as (lower, upper).

    Raises:
        InputError: unless it is two rising numbers of 16 bits, as files hold them; ``name`` says whose.
    """
    try:
        lower, upper = (float(end) for end in window_hu)
    except (TypeError, ValueError):
        lower, upper = math.nan, math.nan
    if not -math.inf < lower < upper < math.inf:
        raise InputError(f"{name}: two rising numbers are needed, such as -1000 400; not {window_hu!r}")
    if lower < _INT16.min or upper > _INT16.max:
        raise InputError(f"{name}: files hold Hounsfield units of {_INT16.min} to {_INT16.max}, not {window_hu!r}")
    return lower, upper


def hu_to_unit(hu: np.ndarray, window_hu: Sequence[float] = DEFAULT_WINDOW_HU) -> np.ndarray:
    """Hounsfield units to [-1, 1], cut off at the window's ends.

    Args:
        hu: of any shape.
        window_hu: (lower, upper) end; lower becomes -1, upper 1.

    Returns:
        float32 of the same shape.
    """
    lower, upper = checked_window(window_hu)
    return np.clip((np.asarray(hu, np.float32) - lower) * (2 / (upper - lower)) - 1, -1, 1).astype(np.float32)


def unit_to_hu(unit: np.ndarray, window_hu: Sequence[float] = DEFAULT_WINDOW_HU) -> np.ndarray:
    """The inverse of :func:`hu_to_unit` within the window.

    Args:
        unit: values in [-1, 1], of any shape.
        window_hu: (lower, upper) end that the values were made with.

    Returns:
        float32 Hounsfield units of the same shape, not rounded.
    """
    lower, upper = checked_window(window_hu)
    return ((np.asarray(unit, np.float32) + 1) * ((upper - lower) / 2) + lower).astype(np.float32)
