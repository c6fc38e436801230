"""Putting a mark into an image: a small change that the detector still finds after what pictures meet.

Whoever marks an image knows it, and can find the change for just this image: informed embedding (Cox IJ, Miller ML,
McKellips AL, "Watermarking as communications with side information", Proc IEEE 1999;87:1127-1141; Miller, Doerr and Cox
2004, see :mod:`nodule_plugin.provenance.codebook`). A blind sum of image and pattern, classical spread spectrum, fails
at 64 x 64: the image itself is a thousand times stronger than 3 HU. The change is found by gradient ascent on the least
correlation over simulated uses: 8 bits, JPEG 75, half the size, a lung window, 80 % of the image. It may be 3 HU root
mean square, and where the image's own noise in the mark's band is stronger, a fraction of that: noise masks the mark
from the eye, and from the detector alike (masking: Cox et al., "Digital Watermarking and Steganography", chapter 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window
from nodule_plugin.provenance.codebook import PUBLIC, MarkKey, codebook
from nodule_plugin.provenance.spectrum import part_grids, texture, upright, whole_grid

MOST_HU, MOST_OF_TEXTURE = 3.0, 0.12
"""Root mean square of the change: 3 HU, or 12 % of what the image holds in the mark's band where that is more."""
SMALLEST = 48
"""Pixels a side that an image needs for a mark."""
_LUNG_HU = (-1350.0, 150.0)
_STEPS, _STEP, _LATE, _LATE_STEP = 40, 0.15, 24, 0.06
"""How often the change is moved, and by which fraction of what is allowed; from which move on by less."""
_INERTIA = 0.7
_SOFTNESS = 0.02
"""Correlations that differ by less count alike in the least."""
_ENOUGH = 0.42
"""Correlation after every use at which more is of no use: p is then below 1e-16."""
_SURE, _TRIES = 0.385, 4
"""Correlation after every use, p below 1e-11, that ends the tries with other words; how many there are."""
_PART, _PART_NEEDS = 0.8, 0.03
"""Of a side; how much more correlation a part needs, of which many places are tried."""
_MASKING, _DETAIL, _AROUND = 0.7, 5 / 128, 3 / 128
"""Power of the image's local detail to which the change is in proportion; how wide the means are (half of it, in sides)
that detail stands out from, and that it is measured over. Without this a network trained on photographs tells marked
images by their flat parts."""
_STEEPNESS = 0.9
"""Of the steps that stand for rounding in the gradient; 0 is a straight line."""
_LUMINANCE = [
    *([16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56]),
    *([14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92]),
    *([49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]),
]
"""ITU-T T.81, table K.1."""
_QUALITY_75 = torch.floor((torch.tensor(_LUMINANCE, dtype=torch.float32) * 50 + 50) / 100)
_BLOCK = torch.cos(torch.pi * torch.arange(8.0)[:, None] * (torch.arange(8.0) + 0.5) / 8) / 2
_BLOCK[0] /= 2**0.5


def embed(
    unit: np.ndarray, payload: str, key: MarkKey = PUBLIC, window_hu: Sequence[float] = DEFAULT_WINDOW_HU
) -> np.ndarray:
    """Mark an image. The same arguments give the same result; nothing is drawn at random.

    Args:
        unit: (rows, columns) in [-1, 1], at least :data:`SMALLEST` pixels a side.
        payload: see :func:`nodule_plugin.provenance.codebook.payload_of`.
        key: of the words.
        window_hu: Hounsfield units of -1 and 1.

    Returns:
        float32 of the same shape in [-1, 1], which differs by at most :func:`most_hu` root mean square.
    """
    low, high = checked_window(window_hu)
    grey = (torch.tensor(unit, dtype=torch.float32).clamp(-1, 1) + 1) * 127.5
    most, best, reached = most_hu(unit, window_hu) * 255 / (high - low), torch.zeros_like(grey), -1.0
    for position, word in _words(grey, payload, key, (low, high)):
        change, least = _change(_laid(grey, position), word, most, (low, high))
        if least > reached:
            reached, best = least, _laid_back(change, position)
        if reached > _SURE:
            break
    return ((grey + best).clamp(0, 255) / 127.5 - 1).numpy()


def most_hu(unit: np.ndarray, window_hu: Sequence[float] = DEFAULT_WINDOW_HU) -> float:
    """How far a mark may change an image, in Hounsfield units root mean square; arguments as in :func:`embed`."""
    low, high = checked_window(window_hu)
    held = float(texture(torch.tensor(unit, dtype=torch.float32).clamp(-1, 1))) * (high - low) / 2
    return max(MOST_HU, MOST_OF_TEXTURE * held)


def _words(grey: Tensor, payload: str, key: MarkKey, window_hu: tuple[float, float]) -> list[tuple[int, Tensor]]:
    """A word for each of the most promising positions: the detector tries all eight, so each may be marked."""
    words = []
    with torch.no_grad():
        for position in range(8):
            seen = _seen(_laid(grey, position), window_hu)[0].mean(0)
            word = codebook(key).chosen(seen, payload)
            words.append((float(torch.cosine_similarity(seen, word, dim=0)), position, word))
    return [(position, word) for _, position, word in sorted(words, key=itemgetter(0), reverse=True)[:_TRIES]]


def _laid(image: Tensor, position: int) -> Tensor:
    """An image turned or flipped, in one of eight ways."""
    flipped = image.flip([axis for axis in (0, 1) if position >> axis & 1])
    return flipped.T.contiguous() if position & 4 else flipped


def _laid_back(image: Tensor, position: int) -> Tensor:
    back = image.T if position & 4 else image
    return back.flip([axis for axis in (0, 1) if position >> axis & 1])


def _change(grey: Tensor, word: Tensor, most: float, window_hu: tuple[float, float]) -> tuple[Tensor, float]:
    """The best change met on the way, at most ``most`` grey values root mean square, and the least correlation then."""
    change = best = moving = torch.zeros_like(grey)
    masked = _detail(grey)
    reached = -1.0
    for step in range(_STEPS):
        change.requires_grad_(True)
        seen, needs = _seen(_rounded(grey + change), window_hu)
        correlations = torch.cosine_similarity(seen, word, dim=-1) - needs
        least = correlations.min().item()
        if least > reached:
            reached, best = least, change.detach()
        if reached > _ENOUGH:
            break
        (slope,) = torch.autograd.grad(_SOFTNESS * torch.logsumexp(-correlations / _SOFTNESS, 0), change)
        slope = slope * masked
        moving = _INERTIA * moving - (1 - _INERTIA) * slope / _size(slope)
        size = (_STEP if step < _LATE else _LATE_STEP) * most
        change = change.detach() + size * moving / _size(moving)
        change = (grey + change * (most / _size(change)).clamp(max=1)).clamp(0, 255) - grey
    return best, reached


def _detail(grey: Tensor) -> Tensor:
    """(rows, columns) how much of a change each pixel hides: a power of the variance of what is finer around it."""
    fine = grey - _averaged(grey, _DETAIL)
    power = _averaged(fine.square(), _AROUND)
    return (power / power.mean().clamp_min(1e-6) + 1e-6) ** _MASKING


def _averaged(image: Tensor, half: float) -> Tensor:
    around = int(half * min(image.shape))
    return avg_pool2d(image[None, None], 2 * around + 1, 1, around, count_include_pad=False)[0, 0]


def _seen(written: Tensor, window_hu: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """What the detector sees after each use, (uses, coefficients), and how much more correlation each needs."""
    whole = torch.stack([whole_grid(use) for use in _uses(written, window_hu)])
    parts = _parts(written)
    needs = torch.tensor([0.0] * len(whole) + [_PART_NEEDS] * len(parts))
    return upright(torch.cat([whole, parts])), needs


def _size(values: Tensor) -> Tensor:
    return values.square().mean().sqrt().clamp_min(1e-12)


def _uses(written: Tensor, window_hu: tuple[float, float]) -> list[Tensor]:
    """What may become of a written image as a whole: nothing, JPEG, half the size, a lung window."""
    return [written, _jpeg(written), _halved(written), _lung_window(written, window_hu)]


def _parts(written: Tensor) -> Tensor:
    """(5, side, side): middle and corners of a square image, as the detector sees them; of others the whole."""
    rows, columns = written.shape
    if rows != columns:
        return whole_grid(written)[None]
    side = int(_PART * rows)
    spare = rows - side
    top, left = (torch.tensor(places) * spare // 2 for places in ((1, 0, 2, 0, 2), (1, 0, 2, 2, 0)))
    cut = [written[y : y + side, x : x + side] for y, x in zip(top.tolist(), left.tolist())]
    return part_grids(torch.stack(cut), rows, top, left)


def _rounded(grey: Tensor) -> Tensor:
    """8 bits, with the gradient of the identity."""
    inside = grey.clamp(0, 255)
    return inside + (inside.round() - inside).detach()


def _jpeg(grey: Tensor) -> Tensor:
    """The luminance of baseline JPEG at quality 75; rounding its coefficients has the gradient of a soft step."""
    rows, columns = grey.shape
    whole = pad(grey[None, None], (0, -columns % 8, 0, -rows % 8), mode="replicate")[0, 0]
    blocks = whole.unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).transpose(1, 2) - 128
    values = _BLOCK @ blocks @ _BLOCK.T / _QUALITY_75
    soft = values - _STEEPNESS / (2 * torch.pi) * torch.sin(2 * torch.pi * values)
    values = soft + (values.round() - soft).detach()
    blocks = _BLOCK.T @ (values * _QUALITY_75) @ _BLOCK + 128
    return _rounded(blocks.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:rows, :columns])


def _halved(grey: Tensor) -> Tensor:
    return _rounded(interpolate(grey[None, None], scale_factor=0.5, mode="bicubic", antialias=True)[0, 0])


def _lung_window(grey: Tensor, window_hu: tuple[float, float]) -> Tensor:
    low, high = window_hu
    hu = grey * ((high - low) / 255) + low
    return _rounded((hu - _LUNG_HU[0]) * (255 / (_LUNG_HU[1] - _LUNG_HU[0])))
