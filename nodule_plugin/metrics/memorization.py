"""Whether a model hands out its training images: likeness of each image to the training image most like it.

An image is called a copy when it is more like a training image than all but a small share of held-out real images are.
Held-out images set the measure because small round nodules resemble each other without anyone copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nodule_plugin.errors import InputError

SIDE = 32
"""Pixels a side at which images are compared: fine detail apart, which noise and resampling change."""


@dataclass(frozen=True)
class Neighbours:
    """For each image the training image most like it.

    Attributes:
        likeness: (N,) correlation of the grey values, from -1 to 1; 1 for a copy, whatever its brightness or contrast.
        place: (N,) index of that training image.
    """

    likeness: np.ndarray
    place: np.ndarray


class TrainingIndex:
    """The training images in the eight orientations that augmentation shows, ready to be searched.

    Args:
        training: M images (3, H, W), of any sizes.

    Raises:
        InputError: if there is none.
    """

    def __init__(self, training: Sequence[Tensor]) -> None:
        if not training:
            raise InputError("copies: no training images; give those the model was trained on")
        small = torch.cat([_shrink(image[None]) for image in training])
        turned = torch.cat([small.rot90(turns, (2, 3)) for turns in range(4)])
        self._count = len(training)
        self._references = _standardised(torch.cat([turned, turned.flip(3)]))

    def find(self, images: Sequence[Tensor]) -> Neighbours:
        """The nearest training image of each of N images (3, h, w), of any sizes, N at least 1."""
        best = [(_standardised(_shrink(image[None])) @ self._references.T).max(dim=1) for image in images]
        likeness = torch.cat([found.values for found in best]).numpy()
        place = torch.cat([found.indices for found in best]).numpy() % self._count
        return Neighbours(likeness, place)


def copy_threshold(held_out: np.ndarray, share: float = 0.01) -> float:
    """The likeness that only ``share`` of held-out real images exceed.

    Args:
        held_out: (N,) likeness of real images that were not trained on.
        share: of false alarms accepted.
    """
    return float(np.quantile(held_out, 1 - share))


def _shrink(images: Tensor) -> Tensor:
    return F.interpolate(images.float().mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)


def _standardised(images: Tensor) -> Tensor:
    """(N, pixels), each with mean 0 and length 1: products are correlations."""
    flat = images.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)
