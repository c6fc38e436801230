"""Whether a model hands out its training images.

An image is called a copy when it is more like a training image (:mod:`nodule_plugin.metrics.likeness`) than all but a
small fraction of held-out real ones are. Held-out images set the measure because small round nodules resemble each
other without anyone copying. Planted copies decide whether the detector rests on grey values, embeddings or both, and
count what it misses.

This is a search and bounds nothing; :mod:`nodule_plugin.privacy` asks whether patients can be told without any copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu
from torch import Tensor

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.intervals import Rate
from nodule_plugin.metrics.likeness import Embed, FittedIndex, Index, Neighbours, TrainingIndex
from nodule_plugin.metrics.planted_copies import planted_copies

FALSE_ALARMS = 0.01
PLANTED = 200


def copy_threshold(held_out: np.ndarray, fraction: float = FALSE_ALARMS) -> float:
    """The likeness that only ``fraction`` of held-out real images exceed.

    Args:
        held_out: (N,) likeness of real images that were not trained on.
        fraction: of false alarms accepted.
    """
    return float(np.quantile(held_out, 1 - fraction))


GREY_VALUES, EMBEDDING = "grey values", "embedding"


@dataclass(frozen=True, eq=False)
class CopyDetector:
    """Calls an image a copy if it is more like a training image than is usual.

    Attributes:
        indices: likeness's name -> the training images in that regard.
        thresholds: likeness's name -> above which an image is called a copy; only of those that the detector rests on.
        held_out: likeness's name -> (N,) likeness of the held-out images that set the thresholds.
        false_alarms: held-out images called copies by thresholds that all others set.
        misses: planted copies, others than those that chose the likenesses, that were not called so.
        missed_by: likeness's name -> the same of a detector that rests on it alone.
        accepted: fraction of false alarms that the thresholds were set for.
    """

    indices: dict[str, Index]
    thresholds: dict[str, float]
    held_out: dict[str, np.ndarray]
    false_alarms: Rate
    misses: Rate
    missed_by: dict[str, Rate]
    accepted: float

    @classmethod
    def calibrate(
        cls,
        training: Sequence[Tensor],
        held_out: Sequence[Tensor],
        embed: Embed | None = None,
        false_alarms: float = FALSE_ALARMS,
        planted: int = PLANTED,
        seed: int = 0,
    ) -> CopyDetector:
        """Set the thresholds, and count what they let pass and what they catch wrongly.

        Args:
            training: images that the model saw.
            held_out: real images of other patients, at least two.
            embed: embeddings; None for grey values only.
            false_alarms: fraction of held-out images that may be called copies, shared out where both likenesses count.
            planted: copies to plant, as many again to choose the likenesses.
            seed: of these.

        Raises:
            InputError: if there is no training image or fewer than two held-out ones.
        """
        if len(held_out) < 2:
            raise InputError(f"copies: {len(held_out)} held-out real image; at least 2 are needed to set a threshold")
        indices: dict[str, Index] = {GREY_VALUES: FittedIndex(training)}
        if embed is not None:
            indices[EMBEDDING] = TrainingIndex(training, embed)
        usual = {name: index.find(held_out).likeness for name, index in indices.items()}
        copies = list(planted_copies(training, 2 * planted, seed))
        disguised = {name: index.find(copies).likeness for name, index in indices.items()}
        choosing, counting = np.arange(planted), np.arange(planted, 2 * planted)

        def missed(names: Sequence[str], chosen: np.ndarray) -> Rate:
            flags = _above(disguised, _thresholds(usual, names, false_alarms), chosen)
            return Rate(int((~flags).sum()), len(chosen))

        choices = [[name] for name in indices] + ([list(indices)] if len(indices) > 1 else [])
        chosen = min(choices, key=lambda names: missed(names, choosing).hits)
        return cls(
            indices,
            _thresholds(usual, chosen, false_alarms),
            usual,
            _false_alarms(usual, chosen, false_alarms),
            missed(chosen, counting),
            {name: missed([name], counting) for name in indices},
            false_alarms,
        )

    def describe(self) -> dict[str, Any]:
        """As metrics.json and a release's manifest hold it."""
        return {
            "accepted_false_alarms": self.accepted,
            "thresholds": self.thresholds,
            "false_alarms": self.false_alarms.to_dict(),
            "misses": self.misses.to_dict(),
        }

    def inspect(self, images: Sequence[Tensor]) -> Inspection:
        """Look for copies among N images (3, H, W), N at least 1."""
        nearest = {name: index.find(images) for name, index in self.indices.items()}
        likenesses = {name: near.likeness for name, near in nearest.items()}
        return Inspection(nearest, _above(likenesses, self.thresholds, np.arange(len(images))))


@dataclass(frozen=True)
class Inspection:
    """What a :class:`CopyDetector` found.

    Attributes:
        nearest: likeness's name -> the nearest training image of each image.
        copies: (N,) True for those called copies.
    """

    nearest: dict[str, Neighbours]
    copies: np.ndarray


@dataclass(frozen=True)
class Nearness:
    """How a set's likenesses compare with held-out real images'.

    Attributes:
        chance: that an image of the set is more like a training image than a held-out one is; 0.5 if it is no nearer.
        error: its standard error (Hanley and McNeil, Radiology 1982;143:29-36).
        quantiles: fraction -> likeness, of the set.
        held_out_quantiles: the same of held-out images.
    """

    chance: float
    error: float
    quantiles: dict[str, float]
    held_out_quantiles: dict[str, float]


def nearness(likeness: np.ndarray, held_out: np.ndarray) -> Nearness:
    """Compare two distributions of likeness, (N,) and (M,)."""
    chance = float(mannwhitneyu(likeness, held_out).statistic) / (len(likeness) * len(held_out))
    first, second = chance / (2 - chance), 2 * chance**2 / (1 + chance)
    variance = chance * (1 - chance) + (len(likeness) - 1) * (first - chance**2)
    variance = (variance + (len(held_out) - 1) * (second - chance**2)) / (len(likeness) * len(held_out))
    return Nearness(chance, float(np.sqrt(max(variance, 0.0))), _quantiles(likeness), _quantiles(held_out))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{fraction:.2f}": float(np.quantile(values, fraction)) for fraction in np.linspace(0, 1, 21)}


@dataclass(frozen=True)
class AttackResult:
    """What images of prompts that belong to one training nodule each have in common with that nodule.

    Attributes:
        copies: images called copies.
        own_nearest: images whose nearest training image, by grey values, is the prompt's own.
        chance_nearest: fraction of that by chance: one in as many as there are training images.
        own_rank: mean fraction of training images that are less like an image than its own is; 0.5 by chance.
        own_rank_error: standard error over prompts.
        prompts: attacked.
    """

    copies: Rate
    own_nearest: Rate
    chance_nearest: float
    own_rank: float
    own_rank_error: float | None
    prompts: int


def attack_result(detector: CopyDetector, images: Sequence[Tensor], sources: Sequence[int]) -> AttackResult:
    """Judge an attack.

    A prompt's own nodule shares its findings with the image, so that even a model that copies nothing ranks it above
    average; a model that hands it out ranks it first.

    Args:
        detector: with the training images.
        images: N generated images, N at least 1.
        sources: (N,) index of each prompt's own training image.
    """
    index = detector.indices[GREY_VALUES]
    assert isinstance(index, FittedIndex)
    own = []
    for image, source in zip(images, sources):
        likeness = index.coarse.by_orientation([image])[0].max(axis=0)
        own.append(float((likeness < likeness[source]).sum() / max(len(likeness) - 1, 1)))
    by_prompt = [np.mean([rank for rank, other in zip(own, sources) if other == source]) for source in set(sources)]
    error = float(np.std(by_prompt, ddof=1) / np.sqrt(len(by_prompt))) if len(by_prompt) > 1 else None
    inspection = detector.inspect(images)
    hits = int((inspection.nearest[GREY_VALUES].index == np.asarray(sources)).sum())
    return AttackResult(
        Rate(int(inspection.copies.sum()), len(own)),
        Rate(hits, len(own)),
        1 / len(index.coarse.vectors),
        float(np.mean(by_prompt)),
        error,
        len(by_prompt),
    )


def _thresholds(usual: dict[str, np.ndarray], names: Sequence[str], false_alarms: float) -> dict[str, float]:
    return {name: copy_threshold(usual[name], false_alarms / len(names)) for name in names}


def _false_alarms(usual: dict[str, np.ndarray], names: Sequence[str], false_alarms: float) -> Rate:
    """Held-out images called copies by the thresholds that the others set."""
    count = len(usual[names[0]])
    alarms = 0
    for index in range(count):
        others = {name: np.delete(usual[name], index) for name in names}
        alarms += int(_above(usual, _thresholds(others, names, false_alarms), np.array([index]))[0])
    return Rate(alarms, count)


def _above(likeness: dict[str, np.ndarray], thresholds: dict[str, float], chosen: np.ndarray) -> np.ndarray:
    return np.any([likeness[name][chosen] > threshold for name, threshold in thresholds.items()], axis=0)
