"""How like a training image an image is, and which training image is most like it.

Likeness is measured in two ways, over the eight orientations that augmentation shows: correlation of grey values after
small turns, scalings and shifts, and cosine of an encoder's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.transforms import ORIENTATIONS, orient
from nodule_plugin.errors import InputError

SIDE = 32
"""Pixels a side at which the training images that come into question are looked for."""
DETAIL_SIDE = 64
"""Pixels a side at which those are compared."""
FINE, COARSE = 1.5, 5.0
"""Deviations in pixels of the band that is compared: noise below, brightness and the mere blob of a nodule above."""
CANDIDATES = 20
ANGLES, SCALES, MOST_SHIFT = (-4.0, 0.0, 4.0), (0.96, 1.0, 1.04), 4
"""Degrees, factors and pixels that a candidate is fitted by."""
Embed = Callable[[Iterable[Tensor]], np.ndarray]
"""N images (3, H, W) uint8 -> (N, D) embeddings."""


def orientations(image: Tensor) -> list[Tensor]:
    """An image (C, H, W) in the eight orientations of training's augmentation; the first is the image itself."""
    return [orient(image, orientation) for orientation in range(ORIENTATIONS)]


@dataclass(frozen=True)
class Neighbours:
    """For each image the training image most like it.

    Attributes:
        likeness: (N,) from -1 to 1; 1 for a copy.
        index: (N,) of that training image.
    """

    likeness: np.ndarray
    index: np.ndarray


class Index(Protocol):
    """Training images that the nearest one can be looked for in."""

    def find(self, images: Sequence[Tensor]) -> Neighbours: ...


class TrainingIndex:
    """Training images as M vectors of length 1, products of which are likenesses.

    Args:
        training: M images (3, H, W), of any sizes.
        describe: N images -> (N, D) vectors; None for grey values at 32 x 32 pixels with mean 0, whose products are
            correlations, whatever an image's brightness or contrast.

    Raises:
        InputError: if there is none.
    """

    def __init__(self, training: Sequence[Tensor], describe: Embed | None = None) -> None:
        if len(training) == 0:
            raise InputError("copies: no training images; give those the model was trained on")
        self._describe = describe or _grey_vectors
        self.vectors = _unit(self._describe(training))

    def by_orientation(self, images: Sequence[Tensor]) -> np.ndarray:
        """(N, 8, M) likeness of each image (3, h, w), in each orientation, to each training image."""
        views = _unit(self._describe(view for image in images for view in orientations(image)))
        return (views @ self.vectors.T).reshape(len(images), ORIENTATIONS, -1)

    def find(self, images: Sequence[Tensor], at_a_time: int = 256) -> Neighbours:
        """The nearest training image of each of N images (3, h, w), of any sizes, N at least 1."""
        starts = range(0, len(images), at_a_time)
        blocks = [self.by_orientation(images[start : start + at_a_time]).max(axis=1) for start in starts]
        return Neighbours(
            np.concatenate([block.max(axis=1) for block in blocks]),
            np.concatenate([block.argmax(axis=1) for block in blocks]),
        )


class FittedIndex:
    """Training images by their grey values, the likeliest fitted onto an image before they are compared.

    The 20 training images that correlate most at 32 x 32 pixels, each in its best orientation, are compared at
    64 x 64: correlation of the band between noise and mere brightness, the greatest over small turns, scalings and
    shifts. Without the fit a shift by 5 % hides most copies.

    Args:
        training: M images (3, H, W), of any sizes.

    Raises:
        InputError: if there is none.
    """

    def __init__(self, training: Sequence[Tensor]) -> None:
        self.coarse = TrainingIndex(training)
        detail = torch.cat([_grey(image[None], DETAIL_SIDE) for image in training])
        self._spectra = torch.fft.rfft2(_band(detail))

    def find(self, images: Sequence[Tensor]) -> Neighbours:
        """The nearest training image of each of N images (3, h, w), of any sizes, N at least 1."""
        nearest = [self._nearest(image) for image in tqdm(images, desc="copies", leave=False, delay=5)]
        return Neighbours(np.array([likeness for likeness, _ in nearest]), np.array([index for _, index in nearest]))

    def _nearest(self, image: Tensor) -> tuple[float, int]:
        by_orientation = self.coarse.by_orientation([image])[0]
        candidates = np.argsort(-by_orientation.max(axis=0), kind="stable")[:CANDIDATES]
        turns, turn_of = np.unique(by_orientation.argmax(axis=0)[candidates], return_inverse=True)
        views = orientations(image)
        fits = _fits(torch.cat([_grey(views[turn][None], DETAIL_SIDE) for turn in turns]))
        spectra = torch.fft.rfft2(_band(fits.flatten(0, 1))).unflatten(0, fits.shape[:2])
        likeness = _greatest_over_shifts(spectra[:, turn_of] * self._spectra[candidates].conj())
        nearest = int(likeness.argmax())
        return float(likeness[nearest]), int(candidates[nearest])


def _fits(images: Tensor) -> Tensor:
    """(m, s, s) -> (n, m, s, s): each turned and scaled a little in n ways."""
    grid = _fit_grid(images.shape[-1])
    return F.grid_sample(images[None].expand(len(grid), -1, -1, -1), grid, padding_mode="border", align_corners=False)


@cache
def _fit_grid(side: int) -> Tensor:
    return _grid([(angle, scale, (0.0, 0.0)) for angle in ANGLES for scale in SCALES], side, side)


def moved(images: Tensor, ways: Sequence[tuple[float, float, tuple[float, float]]]) -> Tensor:
    """Images (N, C, h, w), each turned, scaled and shifted in its way; borders are repeated.

    Args:
        images: N of them.
        ways: N times degrees, a factor and a shift (x, y) in halves of a side.
    """
    grid = _grid(ways, *images.shape[-2:])
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _grid(ways: Sequence[tuple[float, float, tuple[float, float]]], height: int, width: int) -> Tensor:
    """(N, height, width, 2) places that are looked up for each of N ways, see :func:`moved`."""
    matrices = []
    for angle, scale, (right, down) in ways:
        cosine, sine = scale * np.cos(np.deg2rad(angle)), scale * np.sin(np.deg2rad(angle))
        matrices.append([[cosine, -sine, right], [sine, cosine, down]])
    shape = [len(matrices), 1, height, width]
    return F.affine_grid(torch.tensor(matrices, dtype=torch.float32), shape, align_corners=False)


def _greatest_over_shifts(products: Tensor) -> Tensor:
    """(n, m, s, s / 2 + 1) products of spectra -> (m,) greatest correlation over the fits and small shifts."""
    correlation = torch.fft.irfft2(products, s=(DETAIL_SIDE, DETAIL_SIDE))
    near = torch.arange(-MOST_SHIFT, MOST_SHIFT + 1) % DETAIL_SIDE
    return correlation[:, :, near][:, :, :, near].amax((0, 2, 3))


def _grey(images: Tensor, side: int) -> Tensor:
    """(N, 3, H, W) -> (N, side, side) mean of the channels."""
    grey = images.float().mean(1, keepdim=True)
    return F.interpolate(grey, (side, side), mode="bilinear", antialias=True)[:, 0]


def _grey_vectors(images: Iterable[Tensor]) -> np.ndarray:
    alike = (torch.stack(list(group)) for _, group in groupby(images, lambda image: image.shape))
    vectors = torch.cat([_grey(group, SIDE) for group in alike]).flatten(1)
    return (vectors - vectors.mean(dim=1, keepdim=True)).numpy()


def _band(images: Tensor) -> Tensor:
    """(N, s, s) without what is finer than FINE and coarser than COARSE, with mean 0 and length 1."""
    fine, coarse = (_blur_matrix(images.shape[-1], deviation) for deviation in (FINE, COARSE))
    smooth = fine @ images @ fine.T
    band = smooth - coarse @ smooth @ coarse.T
    band = band - band.mean((1, 2), keepdim=True)
    return band / band.flatten(1).norm(dim=1).clamp(min=1e-9)[:, None, None]


@cache
def _blur_matrix(side: int, deviation: float) -> Tensor:
    """(side, side) what :func:`blurred` does along one axis: a product with it takes a tenth of the time."""
    return blurred(torch.eye(side)[:, :, None], deviation)[:, :, 0].T


def blurred(images: Tensor, deviation: float) -> Tensor:
    """(N, h, w) blurred by a Gaussian; borders are repeated."""
    reach = int(3 * deviation + 1)
    weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * deviation**2))
    weights = weights / weights.sum()
    padded = F.pad(images[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))[:, 0]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12))
