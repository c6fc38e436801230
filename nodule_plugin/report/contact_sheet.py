"""Contact sheets: many small images under each other, to be looked at."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nodule_plugin.data.generated import NOTICE, GeneratedSet, read_picture
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing
from nodule_plugin.findings import SCALES

Cells = Mapping[tuple[str, str], np.ndarray]
_CELL_INCHES = 0.85
_DPI = 150


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
    rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def by_guidance(generated: GeneratedSet, seed: int | None = None, limit: int = 8) -> Cells:
    """Prompts down, guidance scales across, all with the same seed.

    Args:
        generated: as inference writes it.
        seed: the first by default.
        limit: of prompts.
    """
    _require_manifest(generated)
    chosen = generated.items[0]["seed"] if seed is None else seed
    items = [item for item in generated.items if item["seed"] == chosen]
    prompts = list(dict.fromkeys(item["prompt"] for item in items))[:limit]
    return {
        (textwrap.fill(item["prompt"], 44), f"guidance {item['guidance_scale']:g}"): read_picture(item["image"])
        for item in sorted(items, key=lambda item: item["guidance_scale"])
        if item["prompt"] in prompts
    }


def by_seed(generated: GeneratedSet, guidance_scale: float, limit: int = 12) -> Cells:
    """Prompts down, seeds across, at one guidance scale."""
    _require_manifest(generated)
    items = generated.at_scale(guidance_scale)
    seeds = list(dict.fromkeys(item["seed"] for item in items))[:limit]
    return {
        (textwrap.fill(item["prompt"], 44), f"seed {item['seed']}"): read_picture(item["image"])
        for item in items
        if item["seed"] in seeds
    }


def by_finding(doses: GeneratedSet, seed: int) -> Cells:
    """One finding a row, its codes across, all else and the noise the same.

    Args:
        doses: what inference writes with ``dose_response.json``.
        seed: of the images.

    Raises:
        InputError: if an item names no findings.
    """
    items = [item for item in doses.items if item["seed"] == seed]
    if not items or any(not item["findings"] for item in items):
        raise InputError(f"contact sheet: {doses.folder} holds no images of findings with seed {seed}")
    ratings = [name for name in SCALES if len({item["findings"].get(name) for item in items}) > 1]
    commonest = {name: _commonest([item["findings"][name] for item in items]) for name in ratings}
    cells = {}
    for name in ratings:
        others = [other for other in ratings if other != name]
        moved = [item for item in items if all(item["findings"][other] == commonest[other] for other in others)]
        for item in sorted(moved, key=lambda item: item["findings"][name]):
            cells[name, str(item["findings"][name])] = read_picture(item["image"])
    return cells


def beside_real(generated: GeneratedSet, real: Mapping[str, np.ndarray], guidance_scale: float) -> Cells:
    """Each real nodule, and what was generated from its findings, with the generated image below the real one.

    Args:
        generated: made from a data list's findings.
        real: the data list's id -> (H, W) grey values in [-1, 1].
        guidance_scale: of the images shown.

    Raises:
        InputError: if no image was generated from one of these.
    """
    items = [item for item in generated.at_scale(guidance_scale) if item["source_id"] in real]
    if not items:
        raise InputError(f"contact sheet: {generated.folder} holds no image of these nodules at {guidance_scale:g}")
    cells: dict[tuple[str, str], np.ndarray] = {}
    for index, item in enumerate(items):
        line, column = divmod(index, 12)
        cells[f"{line + 1}\nreal", f"{column + 1}"] = real[item["source_id"]]
        cells[f"{line + 1}\ngenerated", f"{column + 1}"] = read_picture(item["image"])
    return cells


def write_sheet(path: Path, cells: Cells, notice: str = NOTICE) -> None:
    """Write :func:`contact_sheet` as a file."""
    with replacing(path) as temporary:
        temporary.write_bytes(contact_sheet(cells, notice))


def _require_manifest(generated: GeneratedSet) -> None:
    if generated.manifest is None:
        raise InputError(f"contact sheet: {generated.folder} has no manifest.json of ours, which alone knows the seeds")


def _commonest(codes: Sequence[Any]) -> Any:
    return max(set(codes), key=list(codes).count)
