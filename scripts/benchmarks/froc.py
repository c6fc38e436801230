"""Free-response receiver operating characteristic of a detector of nodules, as LUNA16 defines it.

Source: Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of pulmonary
nodules in computed tomography images: the LUNA16 challenge", Med Image Anal 2017;42:1-13, and its published script
(noduleCADEvaluationLUNA16.py), whose numbers these are.
"""

from __future__ import annotations

import numpy as np

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan; the mean of the sensitivities there is the competition performance metric (CPM)."""


def froc_curve(hits: np.ndarray, scores: np.ndarray, scans: float, missed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The curve over all thresholds.

    Args:
        hits: (P,) bool, nodules that were hit, against false positives; of all scans.
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
