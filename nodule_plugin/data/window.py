"""Between Hounsfield units and the range that networks and pictures use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nodule_plugin.errors import InputError

DEFAULT_WINDOW_HU = (-1000.0, 400.0)
"""(lower, upper) end of the lung window that the whole project uses unless told otherwise."""


def checked_window(window_hu: Sequence[float]) -> tuple[float, float]:
    """``window_hu`` as (lower, upper).

    Raises:
        InputError: unless it is two rising numbers.
    """
    if len(window_hu) != 2 or not window_hu[0] < window_hu[1]:
        raise InputError(f"window_hu: two rising numbers are needed, such as -1000 400; not {list(window_hu)}")
    return float(window_hu[0]), float(window_hu[1])


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
