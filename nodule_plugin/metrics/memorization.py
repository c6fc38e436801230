"""Whether a model hands out its training images: likeness of each image to the training image most like it.

An image is called a copy when it is more like a training image than all but a small fraction of held-out real ones are.
Held-out images set the measure because small round nodules resemble each other without anyone copying. Likeness is
measured in two ways, over the eight orientations that augmentation shows: correlation of grey values after small turns,
scalings and shifts, and cosine of an encoder's embeddings. Planted copies (training images turned, shifted, scaled,
blurred, noisy and of another contrast) decide which of them the detector rests on, and count what it misses.

This is a search and bounds nothing; :mod:`nodule_plugin.privacy` asks whether patients can be told without any copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.transforms import ORIENTATIONS, orient
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.intervals import Rate

SIDE = 32
"""Pixels a side at which the training images that come into question are looked for."""
DETAIL_SIDE = 64
"""Pixels a side at which those are compared."""
FINE, COARSE = 1.5, 5.0
"""Deviations in pixels of the band that is compared: noise below, brightness and the mere blob of a nodule above."""
CANDIDATES = 20
ANGLES, SCALES, MOST_SHIFT = (-4.0, 0.0, 4.0), (0.96, 1.0, 1.04), 4
"""Degrees, factors and pixels that a candidate is fitted by."""
FALSE_ALARMS = 0.01
PLANTED = 200
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
        views = orientations(image)
        best = (-1.0, -1)
        for turn in np.unique(by_orientation.argmax(axis=0)[candidates]):
            indices = candidates[by_orientation.argmax(axis=0)[candidates] == turn]
            spectra = torch.fft.rfft2(_band(_fits(_grey(views[turn][None], DETAIL_SIDE))))
            likeness = _greatest_over_shifts(spectra[:, None] * self._spectra[indices].conj())
            nearest = int(likeness.argmax())
            best = max(best, (float(likeness[nearest]), int(indices[nearest])))
        return best


def _fits(image: Tensor) -> Tensor:
    """(1, s, s) -> (n, s, s): turned and scaled a little."""
    turns = []
    for angle in np.deg2rad(ANGLES):
        for scale in SCALES:
            cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
            turns.append([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    matrices = torch.tensor(turns, dtype=torch.float32)
    grid = F.affine_grid(matrices, [len(turns), 1, *image.shape[-2:]], align_corners=False)
    stack = image[None].expand(len(turns), -1, -1, -1)
    return F.grid_sample(stack, grid, padding_mode="border", align_corners=False)[:, 0]


def _greatest_over_shifts(products: Tensor) -> Tensor:
    """(n, m, s, s / 2 + 1) products of spectra -> (m,) greatest correlation over the fits and small shifts."""
    correlation = torch.fft.irfft2(products, s=(DETAIL_SIDE, DETAIL_SIDE))
    near = torch.arange(-MOST_SHIFT, MOST_SHIFT + 1) % DETAIL_SIDE
    return correlation[:, :, near][:, :, :, near].amax((0, 2, 3))


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
    angle, scale = np.deg2rad(draw.uniform(-5, 5)), draw.uniform(0.95, 1.05)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    shift = draw.uniform(-0.1, 0.1, 2)  # of half a side
    grid = F.affine_grid(
        torch.tensor([[[cosine, -sine, shift[0]], [sine, cosine, shift[1]]]], dtype=torch.float32),
        list(view.shape),
        align_corners=False,
    )
    moved = F.grid_sample(view, grid, padding_mode="border", align_corners=False)
    blurred = _blurred(moved[0], float(draw.uniform(0.05, 1.0)))
    noise = draw.uniform(0, 0.05) * torch.from_numpy(draw.standard_normal(blurred.shape[-2:])).float()
    changed = (blurred - 0.5) * draw.uniform(0.8, 1.2) + 0.5 + draw.uniform(-0.1, 0.1) + noise
    return (changed * 255).round().clamp(0, 255).to(torch.uint8)


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
    blurred = fine @ images @ fine.T
    band = blurred - coarse @ blurred @ coarse.T
    band = band - band.mean((1, 2), keepdim=True)
    return band / band.flatten(1).norm(dim=1).clamp(min=1e-9)[:, None, None]


@cache
def _blur_matrix(side: int, deviation: float) -> Tensor:
    """(side, side) what :func:`_blurred` does along one axis: a product with it takes a tenth of the time."""
    return _blurred(torch.eye(side)[:, :, None], deviation)[:, :, 0].T


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """(N, h, w) blurred by a Gaussian; borders are repeated."""
    reach = int(3 * deviation + 1)
    weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * deviation**2))
    weights = weights / weights.sum()
    padded = F.pad(images[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))[:, 0]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12))
