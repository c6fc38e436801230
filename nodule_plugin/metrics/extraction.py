"""Extraction: images that a generator makes again and again from one prompt, and whether they are training images.

Source: Carlini et al., "Extracting Training Data from Diffusion Models", USENIX Security 2023, arXiv:2301.13188,
section 4.2: generations of a prompt are joined where they are near-identical, and a clique of them gives away that
they are remembered, before anything is compared with training images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from nodule_plugin.metrics.likeness import TrainingIndex
from nodule_plugin.metrics.memorization import GREY_VALUES, CopyDetector, copy_threshold

SMALLEST_CLIQUE = 3


@dataclass(frozen=True)
class Clique:
    """Near-identical images of one prompt.

    Attributes:
        prompt: that they were generated from.
        members: their places among the prompt's images, the most typical first.
        training: index of the training image most like that one.
        likeness: to it, correlation of grey values.
        extracted: whether the detector calls it a copy.
    """

    prompt: str
    members: list[int]
    training: int
    likeness: float
    extracted: bool


def cliques(likeness: np.ndarray, threshold: float, smallest: int = SMALLEST_CLIQUE) -> list[list[int]]:
    """Groups in which every two images are at least so alike (complete linkage), each the most typical image first.

    Args:
        likeness: (S, S), symmetric.
        threshold: of two images that are near-identical.
        smallest: images in a group that counts.
    """
    if len(likeness) < 2:
        return []
    distance = squareform((1 - likeness).clip(min=0), checks=False)
    labels = fcluster(linkage(distance, "complete"), 1 - threshold, "distance")
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    ordered = [group[np.argsort(-likeness[np.ix_(group, group)].sum(axis=1), kind="stable")] for group in groups]
    return [group.tolist() for group in ordered if len(group) >= smallest]


def identity_threshold(training: Sequence[Tensor], held_out: Sequence[Tensor], false_alarms: float) -> float:
    """The likeness above which two images count as near-identical.

    Only ``false_alarms`` of held-out images are so like any training image of another patient.
    """
    return copy_threshold(TrainingIndex(training).find(held_out).likeness, false_alarms)


def prompt_cliques(
    generated: Mapping[str, Sequence[Tensor]], threshold: float, smallest: int = SMALLEST_CLIQUE
) -> list[tuple[str, list[int]]]:
    """The cliques in each prompt's images.

    Args:
        generated: prompt -> its images (3, H, W) uint8.
        threshold: see :func:`identity_threshold`.
        smallest: see :func:`cliques`.

    Returns:
        Prompt and places of the members among its images, the most typical first.
    """
    found = []
    for prompt, images in generated.items():
        alike = TrainingIndex(images).by_orientation(images).max(axis=1)
        found += [(prompt, members) for members in cliques(np.maximum(alike, alike.T), threshold, smallest)]
    return found


def identified(
    found: Sequence[tuple[str, list[int]]], generated: Mapping[str, Sequence[Tensor]], detector: CopyDetector
) -> list[Clique]:
    """Look for the most typical image of each clique among the training images.

    Args:
        found: at least one, see :func:`prompt_cliques`.
        generated: prompt -> its images.
        detector: calibrated with the training images.
    """
    inspection = detector.inspect([generated[prompt][members[0]] for prompt, members in found])
    near = inspection.nearest[GREY_VALUES]
    return [
        Clique(prompt, members, int(near.index[row]), float(near.likeness[row]), bool(inspection.copies[row]))
        for row, (prompt, members) in enumerate(found)
    ]
