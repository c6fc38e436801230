"""Tables as CSV that a spreadsheet program opens as they are: every character right, and no cell run as a formula."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_FORMULA = re.compile(r"(^|[;,\t\r\n\"]) *(?=[=+\-@＝＋－＠])")
"""Where a text could be run (OWASP, "CSV Injection"): at its start, and after what another program's settings may take
for the end of a cell."""
_CONTROL = ("\t", "\r", "\n")


def csv_bytes(lines: Sequence[Mapping[Any, Any]]) -> bytes:
    """Lines as a CSV file.

    UTF-8 with a byte order mark, without which Excel takes the bytes for its own code page. A text that could be run as
    a formula gets an apostrophe in front; numbers stay numbers. What is nested stands as JSON, what does not exist is
    empty.
    """
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    # Excel's own line ends: csv then puts quotes around a lone carriage return as well, which would start a new line.
    writer = csv.DictWriter(text, names, lineterminator="\r\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _cell(value) for name, value in line.items()})
    return text.getvalue().encode("utf-8-sig")


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    text = _FORMULA.sub(r"\g<0>'", value)
    return f"'{text}" if text.startswith(_CONTROL) else text
