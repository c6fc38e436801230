"""What insertion does to real series: voxels changed elsewhere, diameters, noise. Prints numbers, writes no image.

    python scripts/benchmarks/insertion.py --series DIR [DIR ...] --crops DIR [--inpainter DIR] --count 50 \
        --output numbers.json

Each nodule goes into the unchanged host at a random place, with the findings of a random crop and 5 mm or more, painted
by an inpainting model or pasted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import label

from nodule_plugin.errors import show_input_errors
from nodule_plugin.insertion.blending import insert
from nodule_plugin.insertion.host import Host, read_host
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.lesions import place_lesions
from nodule_plugin.insertion.lungs import find_lungs, random_places
from nodule_plugin.insertion.mask_shapes import draw_mask, longest_diameter_mm
from nodule_plugin.insertion.noise import nodule_core, octave_deviations, surrounding_noise
from nodule_plugin.insertion.place import Lesion, Place
from nodule_plugin.insertion.sources import CopyPaste, NoduleSource
from nodule_plugin.prompts import findings_to_prompt

SMALLEST_MM = 5.0
_APART_MM = 15.0
GUIDANCE_SCALE, STEPS = 1.0, 5
"""As in ``insert.json``."""


def main() -> None:
    """Insert, measure, print."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, nargs="+", required=True)
    parser.add_argument("--crops", type=Path, required=True)
    parser.add_argument("--inpainter", type=Path, help="paint instead of pasting")
    parser.add_argument("--largest-mm", type=float, default=20.0, help="a model's grid may hold less: the small one 16")
    parser.add_argument("--count", type=int, default=50, help="nodules into each series")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    crops = CopyPaste.from_folder(given.crops)
    source: NoduleSource = crops if given.inpainter is None else NoduleInpainter.from_folder(given.inpainter)
    drawer = crops.draw_mask if given.inpainter is None else draw_mask
    rows: list[dict[str, Any]] = []
    for folder in given.series:
        started = time.process_time()
        host = read_host(folder)
        lungs = find_lungs(host)
        print(
            f"{folder.name}: read and segmented in {time.process_time() - started:.1f} s of processor time", flush=True
        )
        generator = np.random.default_rng(0)
        for index in random_places(lungs, given.count, given.largest_mm / 2, 1.0, 0.0, _APART_MM, seed=0):
            _, findings, _ = crops.nodules[generator.integers(len(crops.nodules))]
            diameter = float(np.round(generator.uniform(SMALLEST_MM, given.largest_mm), 1))
            x, y, z = host.geometry.to_patient(index).tolist()
            lesion = Lesion("trial", (x, y, z), diameter, findings_to_prompt(findings), findings)
            started = time.process_time()
            (place,) = place_lesions([lesion], host, lungs, source, drawer, seed=len(rows))
            hu = host.hu.copy()
            insert(hu, place, host, source, GUIDANCE_SCALE, STEPS)
            rows.append(measured(host, hu, place) | {"seconds": time.process_time() - started})
            print(rows[-1], flush=True)
    given.output.write_text(json.dumps({"nodules": rows, "summary": summary(rows)}, indent=1) + "\n")
    print(json.dumps(summary(rows), indent=1))


def measured(host: Host, hu: np.ndarray, place: Place) -> dict[str, Any]:
    """One nodule's numbers."""
    outside = host.hu != hu
    outside[place.box] &= place.weight == 0
    around = surrounding_noise(host.hu, place, host)
    own = octave_deviations(hu[place.box], nodule_core(place)) if nodule_core(place).sum() >= 50 else None
    return {
        "asked_mm": place.lesion.diameter_mm,
        "mask_mm": place.measured_mm,
        "half_maximum_mm": half_maximum_mm(hu, place),
        "changed_outside": int(outside.sum()),
        "noise_ratio": [one / other for one, other in zip(own, around)] if own and around else None,
        "texture": place.lesion.findings.texture if place.lesion.findings else None,
    }


def half_maximum_mm(hu: np.ndarray, place: Place) -> float:
    """The diameter of what is half as dense as the nodule or more, by the pixels alone, where it is one piece."""
    values = hu[place.box]
    core, rim = place.mask > 0.9, (place.mask == 0) & (place.weight > 0)
    if not core.any() or not rim.any():
        return float("nan")
    level = (np.median(values[core]) + np.median(values[rim])) / 2
    parts, _ = label((values > level) & (place.weight > 0))
    numbers = np.bincount(parts[core])
    numbers[0] = 0
    piece = (parts == numbers.argmax()).astype(np.float32)
    return longest_diameter_mm(piece, tuple(place.block.geometry.spacing))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all nodules."""
    asked = np.array([row["asked_mm"] for row in rows])
    ratios = {name: np.array([row[f"{name}_mm"] for row in rows]) / asked for name in ("mask", "half_maximum")}
    noise = np.array([row["noise_ratio"] for row in rows if row["noise_ratio"]])
    return {
        "nodules": len(rows),
        "voxels_changed_outside": sum(row["changed_outside"] for row in rows),
        **{
            f"{name}_within_10_percent": float(np.mean(np.abs(ratio[np.isfinite(ratio)] - 1) <= 0.1))
            for name, ratio in ratios.items()
        },
        **{f"{name}_median_ratio": float(np.nanmedian(ratio)) for name, ratio in ratios.items()},
        "noise_ratio_median_by_octave": np.median(noise, axis=0).tolist() if len(noise) else None,
        "median_seconds": float(np.median([row["seconds"] for row in rows])),
    }


if __name__ == "__main__":
    main()
