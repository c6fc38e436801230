"""Free-response receiver operating characteristic of a detector of nodules, as LUNA16 defines it.

Source: Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of pulmonary
nodules in computed tomography images: the LUNA16 challenge", Med Image Anal 2017;42:1-13, and its published script
(noduleCADEvaluationLUNA16.py), whose numbers these are.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan; the mean of the sensitivities there is the competition performance metric (CPM)."""
MOST_MARKS = 100
"""In a scan; the most suspicious ones count."""
UNKNOWN_MM = 10.0
"""Diameter of a finding whose own is not known."""


def match_marks(
    marks: np.ndarray, scores: np.ndarray, nodules: np.ndarray, irrelevant: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which marks of one scan hit a nodule: those nearer to its centre than its radius.

    Of several marks on a nodule the highest counts. A mark on no nodule but on an irrelevant finding counts as nothing,
    any other is a false positive.

    Args:
        marks: (M, 3) x, y, z, mm.
        scores: (M,) higher is more suspicious.
        nodules: (N, 4) x, y, z and diameter, mm.
        irrelevant: (K, 4) the same of findings that are neither nodules to be found nor false positives; a negative
            diameter is not known.

    Returns:
        (P,) bool and (P,) scores of the nodules that were hit (True) and of the false positives, and how many nodules
        were missed.
    """
    if len(scores) > MOST_MARKS:
        kept = scores > np.sort(scores)[-MOST_MARKS - 1]  # of equal ones at the limit none, as in the script
        marks, scores = marks[kept], scores[kept]
    hit, spared = (_near(marks, findings) for findings in (nodules, irrelevant))
    found = hit[hit.any(axis=1)]
    best = np.where(found, scores, -np.inf).max(axis=1, initial=-np.inf)
    false = scores[~hit.any(axis=0) & ~spared.any(axis=0)]
    return np.repeat([True, False], [len(best), len(false)]), np.concatenate([best, false]), len(nodules) - len(best)


def _near(marks: np.ndarray, findings: np.ndarray) -> np.ndarray:
    """(findings, marks) bool."""
    centres, diameters = np.reshape(findings, (-1, 4))[:, :3], np.reshape(findings, (-1, 4))[:, 3]
    radii = np.where(diameters < 0, UNKNOWN_MM, diameters) / 2
    return cdist(centres, np.reshape(marks, (-1, 3))) < radii[:, None]


def froc_curve(hits: np.ndarray, scores: np.ndarray, scans: float, missed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The curve over all thresholds.

    Args:
        hits: (P,) bool, nodules that were hit, against false positives; of all scans, see :func:`match_marks`.
        scores: (P,) of these.
        scans: how many.
        missed: nodules that no mark hit.

    Returns:
        False positives per scan, ascending, and sensitivities (0 to 1), with (0, 0) in front.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)[: len(scores)]  # equal scores pass a threshold together
    found, false = (np.append(0, np.cumsum(which[order])[last]) for which in (hits, ~hits))
    return false / scans, found / (hits.sum() + missed)


def sensitivities(curve: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(7,) sensitivities at :data:`RATES`, linear between the curve's points and level beyond its end."""
    return np.interp(RATES, *curve)
