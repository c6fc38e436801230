"""Answers and key joined: one line for each image that a reader answered, ready for statistics."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pandas as pd

from nodule_plugin.reader_study.answers import Row
from nodule_plugin.reader_study.questions import COMMENT, CONFIDENCE, ITEMS, ORIGIN, suspicion
from nodule_plugin.reader_study.seal import Key

SUSPICION = "suspicion"
CLOCK_TOLERANCE = 1.0
"""Seconds by which the clocks of server and browser may differ over one image."""


def build_table(rows: Sequence[Row], key: Key) -> pd.DataFrame:
    """The last revision of every answer, practice left out.

    Args:
        rows: of the database.
        key: of the study.

    Returns:
        Columns: reader; image; case; arm; repeat_of (id of the image that this one repeats, None of first showings);
        the items (1 to 5, missing for "cannot judge"); origin; confidence; suspicion (-5 certainly real to 5 certainly
        generated); comment; revisions; seconds (from the first showing to the first
        answer, missing where the server's clock was set back meanwhile); visible_seconds (of the
        first answer, as the browser measured it). Ordered by reader and time.
    """
    by_image: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not key.images[row.image].practice:
            by_image.setdefault((row.reader, row.image), []).append(row)
    lines = []
    for (reader, image), answers in by_image.items():
        sealed, first, last = key.images[image], answers[0], answers[-1]
        line = {"reader": reader, "image": image, "case": sealed.case, "arm": sealed.arm, "repeat_of": sealed.repeat_of}
        line |= {name: last.answer[name] for name in (*ITEMS, ORIGIN, CONFIDENCE)}
        line |= {SUSPICION: suspicion(last.answer), COMMENT: last.answer[COMMENT], "revisions": len(answers)}
        line |= {
            "seconds": _seconds(first),
            "visible_seconds": None if first.visible_ms is None else first.visible_ms / 1000,
        }
        lines.append(line)
    columns = [
        "reader",
        "image",
        "case",
        "arm",
        "repeat_of",
        *ITEMS,
        ORIGIN,
        CONFIDENCE,
        SUSPICION,
        COMMENT,
        "revisions",
    ]
    table = pd.DataFrame(lines, columns=[*columns, "seconds", "visible_seconds"])
    numbers = [*ITEMS, CONFIDENCE, SUSPICION, "seconds", "visible_seconds"]
    table[numbers] = table[numbers].astype(float)
    return table


def _seconds(row: Row) -> float | None:
    """From the first showing to the first answer by the server's clock; None where that was set back meanwhile.

    Then the answer came before the showing, or the page was visible for longer by the browser's clock, which runs on.
    """
    if row.shown_at is None:
        return None
    seconds = (datetime.fromisoformat(row.answered_at) - datetime.fromisoformat(row.shown_at)).total_seconds()
    return seconds if seconds >= max(0.0, (row.visible_ms or 0) / 1000 - CLOCK_TOLERANCE) else None
