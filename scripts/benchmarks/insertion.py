"""What insertion does to real series: voxels changed elsewhere, diameters, noise. Prints numbers, writes no image.

    python scripts/benchmarks/insertion.py --series DIR [DIR ...] --crops DIR [--inpainter DIR] --count 50 \
        --output numbers.json
    python scripts/benchmarks/insertion.py --candidates DIR --crops DIR --inpainter DIR --count 100 \
        --output patches.json
    python scripts/benchmarks/insertion.py --series DIR DIR --crops DIR --inpainter DIR --count 15 \
        --dose-response work/datalist.json --output dose.json

Each nodule goes into the unchanged host at a random place, with the findings of a random crop and 5 mm or more, painted
by an inpainting model or pasted. With ``--candidates`` hosts are patches without a nodule, see ``low_data.py``; each is
repeated to a stack (what it shows then runs straight through all slices), and the nodule goes into its middle.

``--dose-response`` moves one rating at a time at each place, with the same seed, and reads it off the inserted nodules:
ordinal regressions on features of ImageNet EfficientNet-Lite0 and radiomic ones, learnt from the data list's training
nodules on the model's grid (the slice in which a nodule is largest); validation and test nodules show how well they
read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inpainting import hounsfield, slices
from luna16 import SHOWN_HU, middle_place, patch_host, read_candidates
from scipy.ndimage import label

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.image_set import DOSE, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.data.requests import dose_response
from nodule_plugin.data.window import unit_to_hu
from nodule_plugin.errors import show_input_errors
from nodule_plugin.files import write_json
from nodule_plugin.findings import Findings
from nodule_plugin.insertion.blending import insert
from nodule_plugin.insertion.host import Host, read_host
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.items import GridDataset
from nodule_plugin.insertion.lesions import place_lesions
from nodule_plugin.insertion.lungs import Lungs, find_lungs, random_places
from nodule_plugin.insertion.mask_shapes import draw_mask, longest_diameter_mm
from nodule_plugin.insertion.noise import nodule_core, octave_deviations, surrounding_noise
from nodule_plugin.insertion.place import Lesion, Place
from nodule_plugin.insertion.sources import CopyPaste, MaskDrawer, NoduleSource
from nodule_plugin.metrics.attributes import FindingReader
from nodule_plugin.metrics.dose_response import dose_curves
from nodule_plugin.metrics.imagenet import ImageNetFeatures
from nodule_plugin.metrics.radiomics import RadiomicFeatures
from nodule_plugin.parallel import fit_threads
from nodule_plugin.prompts import findings_to_prompt

SMALLEST_MM = 5.0
_APART_MM = 15.0
START = {"sphericity": 4, "margin": 4, "texture": 5, "spiculation": 1, "calcification": 6}
"""Where every rating stands while another one moves; ``--start`` changes some."""
MOVED = ("texture", "margin", "spiculation", "calcification")
MOVED_MM, PLEURA_MM = 10.0, 4.0
"""Diameter of the nodules in which one moves, and their distance from the lung's surface: spicules reach far."""
GUIDANCE_SCALE, STEPS = 1.0, 5
"""As in ``insert.json``."""


def main() -> None:
    """Insert, measure, print."""
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    hosts = parser.add_mutually_exclusive_group(required=True)
    hosts.add_argument("--series", type=Path, nargs="+")
    hosts.add_argument("--candidates", type=Path, help="patches without a nodule, in the place of series")
    parser.add_argument("--crops", type=Path, required=True)
    parser.add_argument("--inpainter", type=Path, help="paint instead of pasting")
    parser.add_argument("--largest-mm", type=float, default=20.0, help="a model's grid may hold less: the small one 16")
    parser.add_argument("--count", type=int, default=50, help="nodules into each series, patches, or places")
    parser.add_argument("--dose-response", type=Path, metavar="DATALIST", help="of the crops that it is read with")
    parser.add_argument("--start", type=json.loads, default={}, help='ratings that stand elsewhere, as {"margin": 2}')
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    if given.dose_response and not (given.series and given.inpainter):
        parser.error("--dose-response needs --series and --inpainter")
    fit_threads()
    crops = CopyPaste.from_folder(given.crops)
    source: NoduleSource = crops if given.inpainter is None else NoduleInpainter.from_folder(given.inpainter)
    drawer = crops.draw_mask if given.inpainter is None else draw_mask
    if given.dose_response:
        result: dict[str, Any] = {"curves": moved(given, NoduleInpainter.from_folder(given.inpainter))}
        shown = result
    else:
        trials = (patch_trials if given.candidates else series_trials)(given, crops, source, drawer)
        rows = [tried(host, place, source) for host, place in trials]
        shown = summary(rows)
        result = {"nodules": rows, "summary": shown}
    write_json(given.output, result, indent=1)
    print(json.dumps(shown, indent=1))


def series_trials(
    given: argparse.Namespace, crops: CopyPaste, source: NoduleSource, drawer: MaskDrawer
) -> Iterator[tuple[Host, Place]]:
    """Random places of every series."""
    seeds = count()
    for host, lungs in read_series(given.series):
        generator = np.random.default_rng(0)
        places = random_places(lungs, given.count, given.largest_mm / 2, 1.0, 0.0, _APART_MM, seed=0)
        for index in places:
            lesion = random_lesion(crops, generator, given.largest_mm, host.geometry.to_patient(index))
            (place,) = place_lesions([lesion], host, lungs, source, drawer, next(seeds))
            yield host, place


def patch_trials(
    given: argparse.Namespace, crops: CopyPaste, source: NoduleSource, drawer: MaskDrawer
) -> Iterator[tuple[Host, Place]]:
    """The middle of random patches without a nodule."""
    candidates, generator = read_candidates(given.candidates), np.random.default_rng(0)
    for seed, index in enumerate(generator.permutation(np.flatnonzero(~candidates.nodule))[: given.count]):
        host = patch_host(unit_to_hu(candidates.pixels[index], SHOWN_HU))
        lesion = random_lesion(crops, generator, given.largest_mm, None)

        def draw(diameter_mm: float, lesion: Lesion = lesion, seed: int = seed) -> np.ndarray:
            shape = source.grid.spacing_mm, source.grid.shape
            assert lesion.findings is not None
            return drawer(lesion.findings, diameter_mm, *shape, torch.Generator().manual_seed(seed))

        yield host, middle_place(host, lesion, seed, source, draw)


def read_series(folders: list[Path]) -> Iterator[tuple[Host, Lungs]]:
    """Each with its lungs, and the time that it takes."""
    for folder in folders:
        started = time.process_time()
        host = read_host(folder)
        lungs = find_lungs(host)
        seconds = time.process_time() - started
        print(f"{folder.name}: read and segmented in {seconds:.1f} s of processor time", flush=True)
        yield host, lungs


def random_lesion(crops: CopyPaste, generator: np.random.Generator, largest_mm: float, point: Any) -> Lesion:
    """Findings of a random crop, and a random size."""
    _, findings, _ = crops.nodules[generator.integers(len(crops.nodules))]
    diameter = float(np.round(generator.uniform(SMALLEST_MM, largest_mm), 1))
    position = None if point is None else tuple(point.tolist())
    return Lesion("trial", position, diameter, findings_to_prompt(findings), findings)


def tried(host: Host, place: Place, source: NoduleSource) -> dict[str, Any]:
    """One nodule's numbers."""
    started = time.process_time()
    hu = host.hu.copy()
    insert(hu, place, host, source, GUIDANCE_SCALE, STEPS)
    row = measured(host, hu, place) | {"seconds": time.process_time() - started}
    print(row, flush=True)
    return row


def moved(given: argparse.Namespace, inpainter: NoduleInpainter) -> list[dict[str, Any]]:
    """Curves of what is read off nodules in which one rating moves, seed and place by seed and place."""
    records: list[ImageRecord] = []
    planes: list[torch.Tensor] = []
    for host, lungs in read_series(given.series):
        for index in random_places(lungs, given.count, MOVED_MM / 2, PLEURA_MM, 0.0, _APART_MM, seed=1):
            seed = 1000 + len({record.seed for record in records})
            for codes in dose_response(START | given.start, ratings=MOVED):
                findings = Findings.from_dict(codes)
                point = tuple(host.geometry.to_patient(index).tolist())
                lesion = Lesion("trial", point, MOVED_MM, findings_to_prompt(findings), findings)
                (place,) = place_lesions([lesion], host, lungs, inpainter, draw_mask, seed)
                hu = host.hu.copy()
                insert(hu, place, host, inpainter, GUIDANCE_SCALE, STEPS)
                made = torch.from_numpy(place.block.from_series(hu))
                planes.append(slices([made], [{"nodule": torch.from_numpy(place.drawn)}]))
                records.append(ImageRecord(f"{seed}-{len(records)}", ratings=codes, seed=seed))
    reader = FindingReader([ImageNetFeatures(), RadiomicFeatures()])
    images = image_set(SetKey(DOSE, "painted", GUIDANCE_SCALE), records, torch.cat(planes), reader)
    listed = {split: load_datalist(given.dose_response, split) for split in ("training", "validation", "test")}
    training = real_set(SetKey(TRAINING, "training"), listed["training"], inpainter, reader)
    held_out = real_set(SetKey(REAL, "held out"), [*listed["validation"], *listed["test"]], inpainter, reader)
    return [asdict(curve) for curve in dose_curves(images, held_out, training, reader)]


def real_set(key: SetKey, items: Any, inpainter: NoduleInpainter, reader: FindingReader) -> ImageSet:
    """Real nodules on the model's grid."""
    data = GridDataset(items, inpainter.grid, augment=False)
    records = [
        ImageRecord(crop.item["id"], patient_id=crop.item["patient_id"], ratings=crop.item["findings"])
        for crop in data.data
    ]
    samples = [data[index] for index in range(len(data))]
    planes = slices([hounsfield(sample, inpainter.grid.window_hu) for sample in samples], samples)
    return image_set(key, records, planes, reader)


def image_set(key: SetKey, records: list[ImageRecord], planes: torch.Tensor, reader: FindingReader) -> ImageSet:
    """With the reader's features."""
    features: dict[str, Any] = {
        extractor.id: torch.cat([extractor(part) for part in planes.split(16)]) for extractor in reader.extractors
    }
    return ImageSet(key, records, [], features)


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
