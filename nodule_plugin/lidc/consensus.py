"""From several readers' ratings of a nodule to one set of findings, by a named rule.

Rules, for the ordinal scales (all but calcification and internal structure):

- ``median`` (default) and ``mean``: rounded to a whole code, halves up, that is towards the more marked finding.
- ``mode``: the most frequent code, the lowest of several equally frequent.
- ``reader:N``: the codes of the N-th annotation of the nodule, counted from 1. LIDC's readers are anonymous and their
  order differs between scans: this is one reading of each nodule, not one person's.
- ``each``: every reading by itself, one set of findings for each annotation.

On the nominal scales medians and means say nothing: there ``median`` and ``mean`` too take the most frequent code, the
lowest of several equally frequent. A code that is not on its scale (annotation 3761 of LIDC-IDRI has an internal
structure of 5) is left out and reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodule_plugin.errors import InputError
from nodule_plugin.findings import OPTIONAL_RATINGS, REQUIRED_RATINGS, SCALES, Findings
from nodule_plugin.lidc.records import Annotation

DEFAULT_RULE = "median"
EACH = "each"


@dataclass(frozen=True)
class Consensus:
    """What a rule made of some readers' ratings.

    Attributes:
        annotations: the annotations it rests on.
        findings: None where a required rating has no valid code.
        reader: 1-based index of the annotation among the nodule's, for the rules that take one reading; else None.
        remarks: a line for each code that was left out, and for each required rating that none gave.
    """

    annotations: tuple[Annotation, ...]
    findings: Findings | None
    reader: int | None
    remarks: tuple[str, ...]


def round_half_up(value: float) -> int:
    """Round to the nearest whole number, halves up: 2.5 becomes 3, unlike Python's and NumPy's rounding to even."""
    return math.floor(value + 0.5)


def mode(codes: Sequence[int]) -> int:
    """The most frequent code, the lowest of several equally frequent."""
    counts = Counter(codes)
    return min(counts, key=lambda code: (-counts[code], code))


def median(codes: Sequence[int]) -> int:
    """The median, halves up."""
    ordered = sorted(codes)
    return round_half_up((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def mean(codes: Sequence[int]) -> int:
    """The mean, halves up; in whole numbers, so that a half is exactly a half."""
    return (2 * sum(codes) + len(codes)) // (2 * len(codes))


_ORDINAL_RULES: dict[str, Callable[[Sequence[int]], int]] = {"median": median, "mean": mean, "mode": mode}


def check_rule(rule: str) -> str:
    """Return ``rule`` if it is one.

    Raises:
        InputError: if it is not.
    """
    name, _, number = rule.partition(":")
    if rule in _ORDINAL_RULES or rule == EACH or (name == "reader" and number.isdecimal() and int(number) > 0):
        return rule
    raise InputError(f"consensus: there is no rule {rule!r}; choose median, mean, mode, each or reader:N with N from 1")


def form_consensus(annotations: Sequence[Annotation], rule: str = DEFAULT_RULE) -> list[Consensus]:
    """Apply a rule to the annotations of one nodule.

    Args:
        annotations: at least one.
        rule: see the module's text.

    Returns:
        One consensus; for ``each`` one for each annotation; for ``reader:N`` none where the nodule has fewer than N.

    Raises:
        InputError: if there is no such rule.
    """
    check_rule(rule)
    if rule in _ORDINAL_RULES:
        return [_combine(annotations, _ORDINAL_RULES[rule], reader=None)]
    readings = list(enumerate(annotations, start=1))
    if rule != EACH:
        chosen = int(rule.partition(":")[2])
        readings = [(reader, annotation) for reader, annotation in readings if reader == chosen]
    return [_combine([annotation], mode, reader) for reader, annotation in readings]


def _combine(annotations: Sequence[Annotation], rule: Callable[[Sequence[int]], int], reader: int | None) -> Consensus:
    remarks: list[str] = []
    combined: dict[str, int] = {}
    for name in (*REQUIRED_RATINGS, *OPTIONAL_RATINGS):
        codes = _valid_codes(annotations, name, remarks)
        if codes:
            combined[name] = (rule if SCALES[name].ordinal else mode)(codes)
        elif name in REQUIRED_RATINGS:
            remarks.append(f"no reader gave a valid code for {name}")
    complete = all(name in combined for name in REQUIRED_RATINGS)
    return Consensus(tuple(annotations), Findings(**combined) if complete else None, reader, tuple(remarks))


def _valid_codes(annotations: Sequence[Annotation], name: str, remarks: list[str]) -> list[int]:
    given = [(annotation.id, annotation.ratings[name]) for annotation in annotations if name in annotation.ratings]
    scale = SCALES[name].codes
    remarks += [
        f"annotation {annotation_id}: {name} {code} is not on the scale of {scale[0]} to {scale[-1]} and was left out"
        for annotation_id, code in given
        if code not in scale
    ]
    return [code for _, code in given if code in scale]
