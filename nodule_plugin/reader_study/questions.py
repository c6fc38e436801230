"""What a reader is asked about each image, and how an answer is written down.

Seven items on scales from 1 to 5, six of them LIDC's own, then whether the image is real or generated, how sure the
reader is of that, and a comment. Every item can be answered with "cannot judge", so that nothing is missing unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodule_plugin.findings import SCALES

REALISM = "realism"
ITEMS = (REALISM, "malignancy", "sphericity", "texture", "margin", "spiculation", "lobulation")
"""In the order of the reference method's Table 2."""
LABELS: dict[str, Mapping[int, str]] = {
    REALISM: {
        1: "not realistic at all",
        2: "hardly realistic",
        3: "moderately realistic",
        4: "mostly realistic",
        5: "fully realistic",
    },
    **{item: SCALES[item].labels for item in ITEMS if item != REALISM},
}
CODES = (1, 2, 3, 4, 5)
ORIGIN, CONFIDENCE, COMMENT = "origin", "confidence", "comment"
REAL, GENERATED = "real", "generated"
CONFIDENCE_LABELS = {1: "a guess", 2: "slightly sure", 3: "fairly sure", 4: "very sure", 5: "certain"}
CANNOT_JUDGE = "none"
"""What the form sends for "cannot judge"; stored as null."""
MAX_COMMENT = 2000

Answer = dict[str, Any]
"""Item -> code or None, "origin" -> "real" or "generated", "confidence" -> code, "comment" -> text."""


def read_answer(form: Mapping[str, str]) -> tuple[Answer, list[str]]:
    """What a form says.

    Args:
        form: field -> text, as the browser sends it. Only the fields named here are looked at.

    Returns:
        The answer, and the names of the fields that are missing or hold something that is no answer. Those are not in
        the answer.
    """
    answer: Answer = {}
    for item in ITEMS:
        text = form.get(item, "")
        if text == CANNOT_JUDGE:
            answer[item] = None
        elif text in {str(code) for code in CODES}:
            answer[item] = int(text)
    if form.get(ORIGIN) in (REAL, GENERATED):
        answer[ORIGIN] = form[ORIGIN]
    if form.get(CONFIDENCE, "") in {str(code) for code in CODES}:
        answer[CONFIDENCE] = int(form[CONFIDENCE])
    comment = form.get(COMMENT, "").replace("\r\n", "\n").strip()
    if len(comment) <= MAX_COMMENT:
        answer[COMMENT] = comment
    return answer, [name for name in (*ITEMS, ORIGIN, CONFIDENCE, COMMENT) if name not in answer]


def suspicion(answer: Mapping[str, Any]) -> int:
    """How strongly a reader takes an image for generated: -5 (certain that it is real) to 5 (certain it is not).

    This is the rating behind the area under the receiver operating characteristic curve.
    """
    return int(answer[CONFIDENCE]) * (1 if answer[ORIGIN] == GENERATED else -1)
