"""A first guess of a nodule, from which an inpainting model paints the difference.

What a small network has to learn is less, and its mistakes are smaller in Hounsfield units, if it models what a simple
prediction leaves open: Whang J et al., "Deblurring via Stochastic Refinement", CVPR 2022; Lee S et al., "PriorGrad",
ICLR 2022. Here the prediction is the surroundings continued into what is to be painted, and in the nodule's mask the
grey value of soft tissue.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

REACH = 9
"""Pixels, the width of the box that carries surroundings inwards, applied three times."""
SMOOTHING_STEPS = 10
"""Of a 3 x 3 mean after that, with the surroundings held: no edge is left where they begin."""


def sketch_nodule(given: Tensor, nodule: Tensor, region: Tensor, known: Tensor, inside: float) -> Tensor:
    """Slices with a sketched nodule.

    Args:
        given: (B, S, H, W) in [-1, 1], 0 where it is to be painted or unknown.
        nodule: (B, S, H, W) 0 to 1, the nodule's mask.
        region: (B, S, H, W) bool, to be painted.
        known: (B, S, H, W) bool, where there is an image.
        inside: the nodule's value.

    Returns:
        (B, S, H, W): ``given`` where it is known and not painted, 0 where it is unknown, the sketch in ``region``.
    """
    surroundings = (known & ~region).to(given)
    background = _filled(given, surroundings)
    for _ in range(SMOOTHING_STEPS):
        background = torch.where(region, _mean(background, 3), background)
    amount = _mean(nodule.to(given), 3)
    sketch = background + amount * (inside - background)
    return torch.where(region, sketch, given)


def _filled(given: Tensor, weight: Tensor) -> Tensor:
    """Where there is no weight, the mean of what is near; where nothing is near, of the slice; of the block at last."""
    near, close = given * weight, weight
    for _ in range(3):
        near, close = _mean(near, REACH), _mean(close, REACH)
    whole = (given * weight).sum((1, 2, 3), keepdim=True) / weight.sum((1, 2, 3), keepdim=True).clamp(min=1)
    slices = weight.sum((2, 3), keepdim=True)
    far = ((given * weight).sum((2, 3), keepdim=True) + whole) / (slices + 1)
    # A thousandth of a pixel's weight: it decides only where the boxes reach no surroundings.
    return torch.where(weight > 0, given, (near + 1e-3 * far) / (close + 1e-3))


def _mean(images: Tensor, width: int) -> Tensor:
    return avg_pool2d(images, width, 1, width // 2, count_include_pad=False)
