"""Copies as a model might hand them out: training images in disguise, for those who look for copies to be tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from nodule_plugin.data.transforms import ORIENTATIONS
from nodule_plugin.metrics.likeness import blurred, moved, orientations


def planted_copies(training: Sequence[Tensor], count: int, seed: int = 0) -> Iterator[Tensor]:
    """Copies as a model might hand them out: training images in disguise.

    Each is a random training image in a random orientation, turned by up to 5 degrees, shifted by up to 5 % of its
    side, scaled by up to 5 %, blurred by up to 1 pixel, with contrast and brightness changed by up to 20 % and 10 %,
    and with noise of up to 5 % of the range added.

    Args:
        training: images (3, H, W) uint8.
        count: of copies.
        seed: of all that is random.
    """
    draw = np.random.default_rng(seed)
    for index in draw.integers(len(training), size=count):
        yield _disguised(training[int(index)], draw)


def _disguised(image: Tensor, draw: np.random.Generator) -> Tensor:
    view = orientations(image)[int(draw.integers(ORIENTATIONS))].float()[None] / 255
    angle, scale, right, down = draw.uniform([-5, 0.95, -0.1, -0.1], [5, 1.05, 0.1, 0.1])
    smooth = blurred(moved(view, [(angle, scale, (right, down))])[0], float(draw.uniform(0.05, 1.0)))
    noise = draw.uniform(0, 0.05) * torch.from_numpy(draw.standard_normal(smooth.shape[-2:])).float()
    changed = (smooth - 0.5) * draw.uniform(0.8, 1.2) + 0.5 + draw.uniform(-0.1, 0.1) + noise
    return (changed * 255).round().clamp(0, 255).to(torch.uint8)
