"""What a program can tell the arms of a study apart by: edges, spectrum, grey values, files.

Readers shall judge what is in the images. A number that a few lines of code read off a picture's edge, its spectrum,
its histogram or its file, and that tells generated from real, is a cue that a reader may learn without knowing it. Each
cue is measured by the area under its curve: the chance that a generated image lies above a real one. A second area,
"spread", asks the same of the distance from the middle: values of one arm may be alike without being higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.statistics.interval import Estimate
from nodule_plugin.reader_study.statistics.roc import areas

EDGE, SPECTRUM, HISTOGRAM, FILE = FAMILIES = ("edge", "spectrum", "histogram", "file")
LIMIT = 0.6
"""An area above this is refused, unless so few images reach it by chance."""
CHANCE_LEVEL = 0.95
_DRAWS, _SEED = 2000, 0
_BANDS = {"low": (1 / 16, 1 / 8), "middle": (1 / 8, 1 / 4), "high": (1 / 4, 1 / 2), "corner": (1 / 2, 1)}
"""Cycles a pixel."""
_TINY = 1e-6


def image_cues(grey: np.ndarray, png: bytes) -> dict[str, float]:
    """All cues of one image.

    Args:
        grey: (rows, columns) uint8, at least 16 x 16.
        png: its file.

    Returns:
        "family: cue" -> a number, whose unit does not matter: only ranks are used.
    """
    pixels = grey.astype(float)
    families = {
        EDGE: _edge_cues(pixels),
        SPECTRUM: _spectrum_cues(pixels) | {"grid of eight": _step_across_eights(pixels)},
        HISTOGRAM: _histogram_cues(grey),
        FILE: _file_cues(png),
    }
    return {f"{family}: {cue}": value for family, cues in families.items() for cue, value in cues.items()}


def _edge_cues(pixels: np.ndarray) -> dict[str, float]:
    """The step from the outermost pixels to the next, over the steps inside and over the three that follow; and how
    bright the outermost pixels are."""
    steps = [np.abs(np.diff(turned, axis=0)).mean(1) for turned in (pixels, pixels.T)]
    outer = float(np.mean([[step[0], step[-1]] for step in steps]))
    following = float(np.mean([[step[1:4], step[-4:-1]] for step in steps]))
    inner = float(np.mean([step[3:-3].mean() for step in steps]))
    brightness = _rim(pixels, 0) - _rim(pixels, 2)
    return {"step": _log_ratio(outer, inner), "jump": _log_ratio(outer, following), "brightness": brightness}


def _rim(pixels: np.ndarray, depth: int) -> float:
    """The mean of the square of pixels that lies ``depth`` pixels inside the edge."""
    square = pixels[depth : len(pixels) - depth, depth : pixels.shape[1] - depth]
    return float(np.concatenate([square[0], square[-1], square[1:-1, 0], square[1:-1, -1]]).mean())


def _spectrum_cues(pixels: np.ndarray) -> dict[str, float]:
    """Power in octaves, as fractions of the whole; and in the finest rows and columns of the spectrum against those
    beside them, where networks that enlarge leave a grid."""
    window = np.outer(*(np.hanning(count + 2)[1:-1] for count in pixels.shape))
    power = np.abs(np.fft.fft2((pixels - pixels.mean()) * window)) ** 2
    rows, columns = (np.abs(np.fft.fftfreq(count)) for count in pixels.shape)
    radius = np.hypot(rows[:, None], columns)
    total = power[radius >= _BANDS["low"][0]].sum()
    cues = {
        name: _log_ratio(power[(radius >= low) & (radius < high)].sum(), total) for name, (low, high) in _BANDS.items()
    }
    finest, beside = (power[rows.argsort()[at]].sum() + power[:, columns.argsort()[at]].sum() for at in (-1, -6))
    return cues | {"grid": _log_ratio(finest, beside)}


def _histogram_cues(grey: np.ndarray) -> dict[str, float]:
    levels = np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    return {
        "mean": float(grey.mean()),
        "deviation": float(grey.std()),
        "black": float((grey == 0).mean()),
        "white": float((grey == 255).mean()),
        "gaps": 1 - len(levels) / (levels[-1] - levels[0] + 1),
    }


def _file_cues(png: bytes) -> dict[str, float]:
    """Length, kind of pixels, what is no pixel, and how far the pixels were compressed."""
    position, stored = 8, 0
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        stored += length if png[position + 4 : position + 8] == b"IDAT" else 0
        position += 12 + length
    columns, rows = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    depth_and_colours = png[24:26]
    return {
        "bytes": len(png),
        "mode": int.from_bytes(depth_and_colours, "big"),
        "metadata": len(png) - stored,
        "compression": stored / (rows * columns),
    }


def _step_across_eights(pixels: np.ndarray) -> float:
    """The step across every eighth row and column against the others: the blocks of JPEG files, and of decoders."""
    ratios = []
    for turned in (pixels, pixels.T):
        steps = np.abs(np.diff(turned, axis=0)).mean(1)[1:-1]  # the outermost ones are the edge's
        at_blocks = np.arange(2, len(steps) + 2) % 8 == 0
        ratios.append(_log_ratio(steps[at_blocks].mean(), steps[~at_blocks].mean()))
    return float(np.mean(ratios))


def _log_ratio(above: float, below: float) -> float:
    return float(np.log((above + _TINY) / (below + _TINY)))


def compare_arms(cues: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """How well each cue tells each model's images from real ones.

    Args:
        cues: arm -> for each case what :func:`image_cues` says of its image, in one order; the real arm first.

    Returns:
        Plain types: "cases"; "limit"; "chance", the area that the most telling of all cues stays below in 19 of 20
        designs of this size whose arms are alike; "accepted", none yet; "lines", one a model and cue: "model",
        "family", "cue", "area" (0.5 or above, whatever the direction), "low" and "high" (95 % interval), "telling"
        (above limit and chance).
    """
    names = list(next(iter(cues.values()))[0])
    names += [f"{name}, spread" for name in names]
    real, *made = (np.array([list(image.values()) for image in arm]).T for arm in cues.values())
    pairs = [_with_spread(values, real) for values in made]
    chance = _chance_area(pairs)
    lines = []
    for model, (values, reference) in zip(list(cues)[1:], pairs):
        cases = np.arange(reference.shape[1])
        measured = areas(values, reference, cases, cases)
        for name, area, variance in zip(names, measured.areas, measured.covariance.diagonal()):
            family, cue = name.split(": ")
            told = Estimate(float(max(area, 1 - area)), float(np.sqrt(variance)), np.inf)
            low, high = np.clip(told.interval(), 0, 1).tolist()
            line = {"model": model, "family": family, "cue": cue, "area": told.value, "low": low, "high": high}
            lines.append(line | {"telling": told.value > max(LIMIT, chance)})
    return {"cases": real.shape[1], "limit": LIMIT, "chance": chance, "accepted": [], "lines": lines}


def _with_spread(values: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two arms' (cues, cases), and below them the distances from the middle of both: (2 cues, cases)."""
    centre = np.median(np.hstack([values, real]), axis=1, keepdims=True)
    return np.vstack([values, np.abs(values - centre)]), np.vstack([real, np.abs(real - centre)])


def _chance_area(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """What the largest area stays below in 95 % of draws in which the images of a case change arms at random."""
    count = pairs[0][0].shape[1]
    signs = np.random.default_rng(_SEED).choice([-1.0, 1.0], (_DRAWS, count))
    largest = np.zeros(_DRAWS)
    for pair in pairs:
        ranks = rankdata(np.hstack(pair), axis=1)
        # Changing arms moves the sum of ranks, and with it the area, by the difference of the two.
        moved = signs @ (ranks[:, :count] - ranks[:, count:]).T / (2 * count**2)
        largest = np.maximum(largest, np.abs(moved).max(1))
    return 0.5 + float(np.quantile(largest, CHANCE_LEVEL))


def refuse_telling(blinding: Mapping[str, Any], accepted: Sequence[str]) -> dict[str, Any]:
    """The comparison with what was accepted.

    Args:
        blinding: of :func:`compare_arms`.
        accepted: families of cues that may tell the arms apart.

    Raises:
        InputError: naming the most telling cue of every family that was not accepted.
    """
    if unknown := [name for name in accepted if name not in FAMILIES]:
        raise InputError(f"accept_cues: there is no family {unknown[0]!r}; choose among {', '.join(FAMILIES)}")
    lines = sorted((line for line in blinding["lines"] if line["telling"]), key=lambda line: line["area"])
    worst = {line["family"]: line for line in lines if line["family"] not in accepted}
    if worst:
        told = "; ".join(
            f"{family}: {line['cue']} {line['area']:.2f} ({line['model']})" for family, line in worst.items()
        )
        count = blinding["cases"]
        raise InputError(
            f"blinding: a program tells generated from real images by their {told}; limit {blinding['limit']:g}, "
            f"chance {blinding['chance']:.2f} with {count} + {count} images: take both arms through the same steps, or "
            f"accept it, which the report will say: --accept-cues {' '.join(worst)}"
        )
    return {**blinding, "accepted": list(accepted)}
