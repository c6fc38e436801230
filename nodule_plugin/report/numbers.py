"""Numbers as tables print them."""

from __future__ import annotations

import math


def with_error(value: float, error: float | None) -> str:
    """``value ± error``, both to the error's second digit; without an error four digits of the value.

    Example:
        >>> with_error(96.3412, 1.83)
        '96.3 ± 1.8'
    """
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    if abs(value) >= 1e5:
        return f"{value:.3g} ± {error:.2g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
