"""What an evaluation prints at its end: one table that fits a terminal, the lights, and where the report is."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodule_plugin.report.lights import light_line
from nodule_plugin.report.numbers import scale_text, with_error
from nodule_plugin.report.tables import row_name

WIDTH = 100
NAME, SCALE, COLUMN = 22, 8, 13


def terminal_text(results: Mapping[str, Any], report: Path) -> str:
    """The warnings; one column a question (the first measure that its light rests on), the lights, the report's path.

    Questions whose lights begin with the same measure share its column.

    Args:
        results: the content of metrics.json.
        report: path of the page.

    Returns:
        Lines of at most :data:`WIDTH` characters, but for the path.
    """
    first = list(dict.fromkeys(light["candidates"][0] for light in results["lights"] if light["candidates"]))
    measures = [next(m for m in results["measures"] if m["key"] == key) for key in first]
    rows = [row for row in results["rows"] if any(row["values"][key]["value"] is not None for key in first)]
    lines = [line for sentence in results["warnings"] for line in (*textwrap.wrap(sentence, WIDTH), "")]
    lines += _headings([measure["name"] for measure in measures])
    lines.append("-" * (NAME + SCALE + sum(COLUMN + 1 for _ in measures)))
    for row in rows:
        cells = [_number(row["values"][key]) for key in first]
        name, *more = textwrap.wrap(row_name(row), NAME)
        lines += [_line(name, scale_text(row["guidance_scale"]), cells), *more]
    lines += ["", *textwrap.wrap(" ".join(results["verdict"]), WIDTH), ""]
    for light in results["lights"]:  # whole: what it cannot see stands last
        lines += textwrap.wrap(light_line(light), WIDTH, subsequent_indent="  ")
    return "\n".join([*lines, "", f"Report: {report}"])


def _headings(names: Sequence[str]) -> list[str]:
    """As many lines as the longest heading needs, set at the bottom."""
    wrapped = [textwrap.wrap(name, COLUMN) for name in names]
    height = max((len(lines) for lines in wrapped), default=1)
    filled = [[""] * (height - len(lines)) + lines for lines in wrapped]
    names_of_rows = [""] * (height - 1) + ["set"]
    scales = [""] * (height - 1) + ["guidance"]
    return [_line(name, scale, cells) for name, scale, *cells in zip(names_of_rows, scales, *filled)]


def _number(value: Mapping[str, Any]) -> str:
    """A value and its standard error; without the error where both do not fit."""
    if value["value"] is None:
        return "–"
    text = with_error(value["value"], value["standard_error"])
    return text if len(text) <= COLUMN else f"{value['value']:.3g}"


def _line(name: str, scale: str, cells: Sequence[str]) -> str:
    return (f"{name:<{NAME}}{scale:>{SCALE}}" + "".join(f" {cell:>{COLUMN}}" for cell in cells)).rstrip()
