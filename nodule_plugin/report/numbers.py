"""Numbers as tables print them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ROUNDING = 1e-9
"""Of a number: what is smaller is an error of the arithmetic."""


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


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """``value [low, high]``, rounded as a standard error of a quarter of the interval's width asks for; else 3 digits.

    Of the error two digits are kept where they are 10 to 35, else one. Source: Particle Data Group, "Review of Particle
    Physics" 2024, introduction, section 5.3.

    Example:
        >>> with_interval(96.3412, [92.75, 99.93])
        '96.3 [92.8, 99.9]'
    """
    if interval is None or not all(math.isfinite(end) for end in interval):
        return f"{value:.3g}"
    if interval[1] - interval[0] <= ROUNDING * max(1.0, abs(value)):
        return f"{value if abs(value) > ROUNDING else 0.0:.3g}"
    if abs(value) >= 1e5:
        return f"{value:.2e} [{interval[0]:.2e}, {interval[1]:.2e}]"
    error = (interval[1] - interval[0]) / 3.92
    exponent = math.floor(math.log10(error))
    digits = max(0, (1 if error / 10**exponent < 3.55 else 0) - exponent)
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def percent(fraction: float, digits: int = 1) -> str:
    """``4.2 %`` of 0.042; the space does not break."""
    return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def rate_text(rate: Mapping[str, Any]) -> str:
    """``3 of 72 (4.2 % [0.9 %, 11.7 %])`` of a rate as metrics.json holds it."""
    low, high = rate["ci95"]
    return f"{rate['hits']} of {rate['count']} ({percent(rate['share'])} [{percent(low)}, {percent(high)}])"


def value_of(row: Mapping[str, Any], key: str) -> float | None:
    """The number of a measure in a row of metrics.json; None where there is none."""
    return row["values"].get(key, {}).get("value")


def scale_text(guidance_scale: float | None) -> str:
    """A guidance scale, or a dash for none."""
    return "–" if guidance_scale is None else f"{guidance_scale:g}"


def set_title(model: str, guidance_scale: float | None) -> str:
    """What tables and figures call a set of images."""
    return model if guidance_scale is None else f"{model} at {guidance_scale:g}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
