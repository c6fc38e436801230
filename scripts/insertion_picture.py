"""Draw one slice of a host before and after an insertion, and the nodule's mask: docs/images/insertion.png.

    nodule phantom --scans 1 --output work/host
    nodule insert --series work/host --random 1 --diameter_mm 12 --findings "{...}" --output_dir work/inserted
    python scripts/insertion_picture.py --series work/host --inserted work/inserted --output docs/images/insertion.png

Only synthetic hosts are drawn: the picture is for showing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel
import numpy as np

from nodule_plugin.errors import InputError, show_input_errors
from nodule_plugin.insertion.host import Host, read_host

WINDOW_HU = (-1150, 350)
CLOSE_MM = 50.0


def main() -> None:
    """Read what an insertion wrote and draw its largest slice."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, required=True, help="the host")
    parser.add_argument("--inserted", type=Path, required=True, help="what nodule insert wrote")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    host = read_host(given.series)
    if not all(item.get("SyntheticData") == "YES" for item in host.slices):
        raise InputError(f"series: {given.series} is a patient's; give a phantom (nodule phantom --scans 1)")
    series = json.loads((given.inserted / "manifest.json").read_text())["series"][0]
    volume, mask = (_voxels(given.inserted / series[name]) for name in ("volume", "mask"))
    draw(host, volume, mask, given.output, series["nodules"][0]["prompt"])


def _voxels(path: Path) -> np.ndarray:
    """(slices, rows, columns) of a NIfTI file."""
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj).transpose(2, 1, 0)


def draw(host: Host, volume: np.ndarray, mask: np.ndarray, output: Path, prompt: str) -> None:
    """Before, after and mask; the whole slice above, the nodule's surroundings below."""
    index = int(mask.sum(axis=(1, 2)).argmax())
    spacing = host.geometry.spacing[1:]
    row, column = np.argwhere(mask[index]).mean(axis=0)
    half = CLOSE_MM / 2 / spacing
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.9), facecolor="black")
    titles = ("host (phantom)", "with an inserted nodule", "its mask")
    for panels, close in zip(axes, (False, True)):
        for panel, plane, title in zip(panels, (host.hu[index], volume[index], volume[index]), titles):
            panel.imshow(plane, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
            panel.set_axis_off()
            if close:
                panel.set_xlim(column - half[1], column + half[1])
                panel.set_ylim(row + half[0], row - half[0])
            else:
                panel.set_title(title, color="white", fontsize=10)
        panels[2].contour(mask[index] > 0, levels=[0.5], colors="#ffb000", linewidths=0.9)
    note = f"SYNTHETIC, not for diagnosis. {prompt}"
    figure.text(0.5, 0.015, note, color="white", ha="center", fontsize=8)
    figure.subplots_adjust(left=0, right=1, top=0.95, bottom=0.04, wspace=0.01, hspace=0.01)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100, facecolor="black")


if __name__ == "__main__":
    main()
