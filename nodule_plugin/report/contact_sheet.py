"""Contact sheets: many small images under each other, to be looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nodule_plugin.data.generated import NOTICE, GeneratedSet
from nodule_plugin.data.picture import read_picture
from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES
from nodule_plugin.report.html import figure_png

Cells = Mapping[tuple[str, str], np.ndarray]
_CELL_INCHES = 0.85


def contact_sheet(cells: Cells, notice: str = NOTICE) -> bytes:
    """A PNG with one image for each pair of a row's and a column's name.

    Args:
        cells: (row, column) -> (H, W) grey values in [-1, 1]; rows and columns come in the order they first appear, a
            pair that is missing stays empty.
        notice: printed below.

    Raises:
        InputError: if there is no image.
    """
    if not cells:
        raise InputError("contact sheet: there is no image to show")
    rows, columns = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    longest = max(len(line) for row in rows for line in row.split("\n"))
    margin = 0.3 + 0.065 * longest
    width, height = margin + _CELL_INCHES * len(columns), 0.5 + _CELL_INCHES * len(rows)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        gridspec_kw={
            **{"left": margin / width, "right": 0.995, "bottom": 0.2 / height, "top": 1 - 0.25 / height},
            **{"wspace": 0.03, "hspace": 0.03},
        },
    )
    for row, across in zip(rows, axes):
        for column, axis in zip(columns, across):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if (row, column) in cells:
                axis.imshow(cells[row, column], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        across[0].set_ylabel(row, rotation=0, ha="right", va="center", fontsize=7)
    for column, axis in zip(columns, axes[0]):
        axis.set_title(column, fontsize=7, pad=3)
    figure.text(0.995, 0.05 / height, notice, ha="right", fontsize=6, color="0.35")
    return figure_png(figure, dpi=150)


def by_guidance(generated: GeneratedSet, limit: int = 8) -> Cells:
    """Prompts down, guidance scales across; along a row the seed stays.

    Args:
        generated: as inference writes it. Requests of a data list have seeds of their own: each
            prompt's first is shown.
        limit: of prompts.
    """
    cells: dict[tuple[str, str], np.ndarray] = {}
    for prompt, items in _by_prompt(generated.items)[:limit]:
        for item in sorted(items, key=lambda item: item["guidance_scale"]):
            if item["seed"] == items[0]["seed"]:
                cells[prompt, f"guidance {item['guidance_scale']:g}"] = read_picture(item["image"])
    return cells


def by_seed(generated: GeneratedSet, guidance_scale: float, limit: int = 8, across: int = 12) -> Cells:
    """Prompts down, those with the most images first, and across what different seeds make of them at one scale.

    Args:
        generated: as inference writes it.
        guidance_scale: of all images.
        limit, across: of prompts, and of images of each.
    """
    prompts = sorted(_by_prompt(generated.at_scale(guidance_scale)), key=lambda of_prompt: -len(of_prompt[1]))
    return {
        (prompt, f"{number}"): read_picture(item["image"])
        for prompt, items in prompts[:limit]
        for number, item in enumerate(items[:across], start=1)
    }


def _by_prompt(items: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The items of each prompt, which is broken into lines, in the order in which the prompts first come."""
    if any(item["seed"] is None or item["guidance_scale"] is None for item in items):
        raise InputError("contact sheet: only a set that inference wrote says which seed and guidance scale are whose")
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        by_prompt.setdefault(textwrap.fill(item["prompt"], 44), []).append(item)
    return list(by_prompt.items())


def by_finding(doses: GeneratedSet, guidance_scale: float, seed: int) -> Cells:
    """One finding a row, its codes across, all else and the noise the same.

    Args:
        doses: what inference writes with ``dose_response.json``.
        guidance_scale, seed: of the images.

    Raises:
        InputError: if an item names no findings.
    """
    items = [item for item in doses.at_scale(guidance_scale) if item["seed"] == seed]
    if not items or any(not item["findings"] for item in items):
        raise InputError(
            f"contact sheet: {doses.folder} holds no images of findings at {guidance_scale:g} with seed {seed}"
        )
    ratings = [name for name in SCALES if len({item["findings"].get(name) for item in items}) > 1]
    commonest = {name: _commonest([item["findings"][name] for item in items]) for name in ratings}
    cells = {}
    for name in ratings:
        others = [other for other in ratings if other != name]
        moved = [item for item in items if all(item["findings"][other] == commonest[other] for other in others)]
        for item in sorted(moved, key=lambda item: item["findings"][name]):
            cells[name, str(item["findings"][name])] = read_picture(item["image"])
    if not cells:
        raise InputError(f"contact sheet: {doses.folder}: no finding moves alone; generate with dose_response.json")
    return cells


def beside_real(generated: GeneratedSet, real: Mapping[str, np.ndarray], guidance_scale: float) -> Cells:
    """Each real nodule and, below it, the first image that was generated from its findings.

    Args:
        generated: made from a data list's findings.
        real: the data list's id -> (H, W) grey values in [-1, 1].
        guidance_scale: of the images shown.

    Raises:
        InputError: if no image was generated from one of these.
    """
    items: dict[str, dict[str, Any]] = {}
    for item in generated.at_scale(guidance_scale):
        if item["source_id"] in real:
            items.setdefault(item["source_id"], item)
    if not items:
        raise InputError(f"contact sheet: {generated.folder} holds no image of these nodules at {guidance_scale:g}")
    cells: dict[tuple[str, str], np.ndarray] = {}
    for index, item in enumerate(items.values()):
        line, column = divmod(index, 12)
        cells[f"{line + 1}\nreal", f"{column + 1}"] = real[item["source_id"]]
        cells[f"{line + 1}\ngenerated", f"{column + 1}"] = read_picture(item["image"])
    return cells


def _commonest(codes: Sequence[Any]) -> Any:
    return max(set(codes), key=list(codes).count)
