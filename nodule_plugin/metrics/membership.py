"""Membership inference by patient: can those whom a generator learnt from be told from others of the same kind?

An attack gives every image a score that is high where the model seems to know it, and a patient the mean of their
images' scores. How well scores tell members from held-out patients is said as Carlini et al. ask for ("Membership
Inference Attacks From First Principles", IEEE S&P 2022, arXiv:2112.03570): by the fraction of members found while
hardly any held-out patient is taken for one, since an attack that is sure of few harms these few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu
from torch import Tensor

from nodule_plugin.metrics.intervals import proportion_interval
from nodule_plugin.metrics.likeness import TrainingIndex

FALSE_POSITIVE_RATES = (0.01, 0.001)
RESAMPLES = 1000
"""Of patients, for the intervals."""


def likelihood_ratio_scores(losses: np.ndarray, references: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """How much better a model knows images than models do that did not see their patients (LiRA, off line).

    Per timestep (mean of the references' - own) / spread, in logarithms of losses, which are closer to normal; then the
    mean over timesteps. The spread is one for all images: Carlini et al. (section VI) find that better than one for
    each where there are fewer than about 64 reference models.

    Args:
        losses: (N, T) of the model in question, above 0.
        references: (K, N, T) of the reference models.
        unseen: (K, N) whether a reference model did not see an image's patient; at least two must not.

    Returns:
        (N,) scores.
    """
    others = np.where(unseen[:, :, None], np.log(references), np.nan)
    spread = np.sqrt(np.nanmean(np.nanvar(others, axis=0, ddof=1), axis=0))
    return np.asarray(((np.nanmean(others, axis=0) - np.log(losses)) / spread).mean(axis=1))


def nearest_generated_scores(
    images: Sequence[Tensor], prompts: Sequence[str], generated: Mapping[str, Sequence[Tensor]]
) -> np.ndarray:
    """Likeness of each image to the nearest of those generated from its own prompt.

    Source: Chen et al., "GAN-Leaks", CCS 2020, arXiv:1909.03935, the attack with full access to what is generated.

    Args:
        images: N of (3, h, w) uint8.
        prompts: N.
        generated: prompt -> images made from it, the same number for every prompt.

    Returns:
        (N,) correlations of grey values, see :class:`nodule_plugin.metrics.likeness.TrainingIndex`.
    """
    scores = np.empty(len(images))
    for prompt, made in generated.items():
        own = [place for place, each in enumerate(prompts) if each == prompt]
        if own:
            scores[own] = TrainingIndex(made).find([images[place] for place in own]).likeness
    return scores


def patient_scores(scores: np.ndarray, patients: Sequence[str]) -> dict[str, float]:
    """Each patient's mean over their images."""
    ids = np.asarray(patients)
    return {patient: float(scores[ids == patient].mean()) for patient in dict.fromkeys(patients)}


def detection_rate(members: np.ndarray, held_out: np.ndarray, false_positives: float) -> float | None:
    """Fraction of members above the lowest threshold that takes at most that fraction of held-out patients for members.

    Args:
        members, held_out: scores of patients.
        false_positives: accepted fraction.

    Returns:
        None where even a single held-out patient would be more than that fraction: it cannot be shown then.
    """
    allowed = int(false_positives * len(held_out) + 1e-9)
    if allowed < 1:
        return None
    return float((members > np.sort(held_out)[-(allowed + 1)]).mean())


def describe_attack(members: np.ndarray, held_out: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """What an attack reaches, with 95 % intervals by the bootstrap over patients.

    The interval of a rate takes in the exact binomial one at the threshold as it is: the bootstrap knows no width where
    nobody was found.

    Args:
        members, held_out: scores of patients, two of either at least.
        seed: of the bootstrap.

    Returns:
        "members" and "held_out" (how many), "area" (under the ROC curve: "value", "ci95"), "rates" (for each of
        :data:`FALSE_POSITIVE_RATES` "false_positive_rate", "value", "ci95", both None where it cannot be shown) and
        "smallest_false_positive_rate", the smallest that so few held-out patients can show.
    """
    draw = np.random.default_rng(seed)
    drawn = [[draw.choice(group, len(group)) for group in (members, held_out)] for _ in range(RESAMPLES)]
    areas = [_area(*pair) for pair in drawn]
    rates = []
    for accepted in FALSE_POSITIVE_RATES:
        value, interval = detection_rate(members, held_out, accepted), None
        if value is not None:
            low, high = _percentiles([float(detection_rate(own, others, accepted) or 0.0) for own, others in drawn])
            exact = proportion_interval(round(value * len(members)), len(members))
            interval = [min(low, exact[0]), max(high, exact[1])]
        rates.append({"false_positive_rate": accepted, "value": value, "ci95": interval})
    return {
        "members": len(members),
        "held_out": len(held_out),
        "area": {"value": _area(members, held_out), "ci95": _percentiles(areas)},
        "rates": rates,
        "smallest_false_positive_rate": 1 / len(held_out),
    }


def _area(members: np.ndarray, held_out: np.ndarray) -> float:
    return float(mannwhitneyu(members, held_out).statistic) / (len(members) * len(held_out))


def _percentiles(values: Sequence[float]) -> list[float]:
    return [float(end) for end in np.percentile(values, [2.5, 97.5])]
