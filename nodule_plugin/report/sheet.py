"""A contact sheet of a generated set: prompts down, guidance scales across."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from nodule_plugin.data.generated import load_generated, read_picture
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing


def write_contact_sheet(generated_dir: str | Path, file: Path, prompts: int = 8, per_cell: int = 1) -> Path:
    """Draw the first images of each prompt at each guidance scale.

    Args:
        generated_dir: a generated set with prompts and guidance scales.
        file: the picture, PNG or PDF.
        prompts: rows at most.
        per_cell: images side by side for one prompt and scale.

    Raises:
        InputError: if the set has no manifest, which alone knows prompts and scales.
    """
    items = load_generated(generated_dir).items
    if any(item.get("guidance_scale") is None for item in items):
        raise InputError(f"{generated_dir}: no manifest.json, so prompts and guidance scales are unknown")
    rows = list(dict.fromkeys(item["prompt"] for item in items))[:prompts]
    scales = sorted({item["guidance_scale"] for item in items})
    figure = Figure(figsize=(2.6 + 1.05 * len(scales) * per_cell, 1.15 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), 1 + len(scales) * per_cell, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, prompt in enumerate(rows):
        axes[row, 0].text(1, 0.5, textwrap.fill(prompt, 34), ha="right", va="center", fontsize=7)
        for column, scale in enumerate(scales):
            found = [item for item in items if item["prompt"] == prompt and item["guidance_scale"] == scale]
            for place, item in enumerate(found[:per_cell]):
                axis = axes[row, 1 + column * per_cell + place]
                axis.imshow(read_picture(item["image"]), cmap="gray", vmin=-1, vmax=1, interpolation="bicubic")
                if row == 0 and place == 0:
                    axis.set_title(f"guidance {scale:g}", fontsize=8, loc="left")
    figure.suptitle("Synthetic images. For research use only; not for diagnosis.", fontsize=8)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)
    return file
