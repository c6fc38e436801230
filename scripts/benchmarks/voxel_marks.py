"""How surely an inserted nodule's mark is found in voxels, and how often where there is none. Writes no image.

    python scripts/benchmarks/voxel_marks.py --series DIR [DIR ...] --inpainter DIR --crops DIR --count 20 \
        --output marks.json

Nodules of each diameter go into the unchanged hosts at random places. Each is looked for in the whole series, in a part
that somebody might cut out, and in the one slice that shows most of it. The hosts and the crops carry no mark.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nodule_plugin.data.nifti import read_volume
from nodule_plugin.data.orientation import shown
from nodule_plugin.errors import show_input_errors
from nodule_plugin.files import write_json
from nodule_plugin.insertion.host import Host, read_host
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.lesions import read_lesions
from nodule_plugin.insertion.mask_shapes import draw_mask
from nodule_plugin.insertion.place import Place
from nodule_plugin.insertion.voxels import VoxelInsertion
from nodule_plugin.provenance.detection import THRESHOLD
from nodule_plugin.provenance.files import detect_in_hu

DIAMETERS_MM = (5.0, 7.0, 10.0, 15.0)
FINDINGS = {"sphericity": 4, "margin": 4, "texture": 5, "spiculation": 1, "calcification": 6}
PART = (16, 64, 64)
"""Slices, rows and columns that are cut out."""
WHOLE = 1
"""Nodules of each diameter that are looked for in a whole series: that takes a minute."""


def main() -> None:
    """Insert, look, print."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, nargs="+", required=True)
    parser.add_argument("--inpainter", type=Path, required=True)
    parser.add_argument("--crops", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20, help="nodules of each diameter in each series")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    insertion = VoxelInsertion(NoduleInpainter.from_folder(given.inpainter), draw_mask, 1.0, 5)
    rows: list[dict[str, Any]] = []
    crops = sorted((given.crops / "images").glob("*.nii.gz"))
    alarms = {"crops": [detect_in_hu(crop_volume(path)).found for path in tqdm(crops, desc="crops without a mark")]}
    for folder in given.series:
        host = read_host(folder)
        values = shown(host.hu, host.geometry.nifti_affine())
        alarms[f"slices of {folder.name}"] = [
            detect_in_hu(plane[None]).found for plane in tqdm(values, desc="slices without a mark")
        ]
        for diameter in DIAMETERS_MM:
            lesions = read_lesions(random=1, diameter_mm=diameter, findings=FINDINGS)
            for [place] in tqdm(insertion.place(host, lesions, range(given.count)), desc=f"{diameter:g} mm"):
                row = found(insertion, host, place, whole=len(rows) % given.count < WHOLE)
                rows.append({"series": folder.name, "diameter_mm": diameter, **row})
    counts = {name: [sum(found), len(found)] for name, found in alarms.items()}
    result = {"nodules": rows, "summary": summary(rows), "alarms": counts}
    write_json(given.output, result, indent=1)
    print(result["summary"], result["alarms"])


def crop_volume(path: Path) -> np.ndarray:
    """(slices, rows, columns) of a crop."""
    return np.rint(read_volume(path).voxels.transpose(2, 1, 0))


def found(insertion: VoxelInsertion, host: Host, place: Place, whole: bool) -> dict[str, Any]:
    """Where a nodule's mark is found, as decimal logarithms of p."""
    hu = insertion.insert(host, [place]).hu
    most = place.box[0].start + int(place.mask.sum((1, 2)).argmax())
    middle = [(part.start + part.stop) // 2 for part in place.box]
    looks = {"part": hu[cut_out(middle, hu.shape, place.seed)], "slice": hu[most : most + 1]}
    if whole:
        looks["whole"] = hu
    affine = host.geometry.nifti_affine()
    findings = {name: detect_in_hu(shown(values, affine)) for name, values in looks.items()}
    chances = {name: finding.log10_p for name, finding in findings.items()}
    said = findings["part"].payload
    return {"voxels": int((place.weight > 0).sum()), "payload": said, "log10_p": chances}


def cut_out(middle: list[int], shape: tuple[int, ...], seed: int) -> tuple[slice, ...]:
    """A part of a series, the nodule somewhere around its middle."""
    shift = np.random.default_rng(seed).integers(-4, 5, 3)
    starts = np.clip(np.array(middle) + shift - np.array(PART) // 2, 0, np.array(shape) - PART)
    return tuple(slice(start, start + length) for start, length in zip(starts, PART))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each series and diameter: how many are found in each look."""
    table = []
    for name, diameter in sorted({(row["series"], row["diameter_mm"]) for row in rows}):
        chosen = [row for row in rows if (row["series"], row["diameter_mm"]) == (name, diameter)]
        looks = {}
        for look in ("whole", "part", "slice"):
            chances = [row["log10_p"][look] for row in chosen if look in row["log10_p"]]
            looks[look] = [sum(chance < THRESHOLD for chance in chances), len(chances), float(np.max(chances))]
        voxels = float(np.median([row["voxels"] for row in chosen]))
        said = sum(row["payload"] is not None for row in chosen)
        table.append({"series": name, "diameter_mm": diameter, "voxels": voxels, **looks, "payload": said})
    return table


if __name__ == "__main__":
    main()
