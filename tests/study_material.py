"""A small data list, generated sets and forms, for tests of the reader study."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from crops_folder import write_volume
from PIL import Image

from nodule_plugin.data.generated import FORMAT, VERSION
from nodule_plugin.reader_study.design import DesignedStudy, Settings
from nodule_plugin.reader_study.questions import ITEMS

SIZE = 16
CASES = 14
SMALL = Settings(cases=6, repeats=4, practice=2, accepted_cues=("edge", "spectrum", "histogram", "file"))


@dataclass
class Material:
    """A data list of small real images and two generated sets from their findings."""

    datalist: Path
    generated: list[Path]


def write_material(folder: Path, cases: int = CASES) -> Material:
    rng = np.random.default_rng(0)
    items = []
    for number in range(cases):
        file = folder / "crops" / f"{number}.nii.gz"
        write_volume(file, rng.normal(-600, 250, (24, 24, 1)).astype(np.int16), (1.0, 1.0, 1.0))
        item: dict[str, Any] = {"id": f"real-{number}", "image": file.name, "slice_index": 0, "centre": [11.5, 11.5]}
        item |= {
            "spacing": [1.0, 1.0],
            "diameter_mm": 5.0,
            "roi_mm": 10.0,
            "padding": 0,
            "prompt": f"prompt {number % 3}",
        }
        items.append(item | {"findings": {}, "patient_id": f"P{number}", "synthetic": False})
    datalist = folder / "datalist.json"
    content = {"dataset_dir": str(folder / "crops"), "training": [], "validation": [], "test": items}
    datalist.write_text(json.dumps(content))
    return Material(datalist, [write_generated(folder / name, items, seed) for seed, name in enumerate(("one", "two"))])


def write_generated(folder: Path, items: list[dict[str, Any]], seed: int, **manifest: Any) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    images = []
    for item in items:
        name = f"{item['id']}.png"
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), np.uint8)).save(folder / name)
        image = {"id": item["id"], "image": name, "nifti": None, "prompt": item["prompt"], "findings": None}
        images.append(image | {"guidance_scale": 3.0, "seed": 0, "roi_mm": 10.0, "source_id": item["id"]})
    content = {"format": FORMAT, "version": VERSION, "synthetic": True, "window_hu": [-1000, 400], "images": images}
    content |= {"model": {"base_model": f"model-{folder.name}"}, "scheduler": "x", "num_inference_steps": 1}
    (folder / "manifest.json").write_text(json.dumps(content | manifest))
    return folder


def links_of(designed: DesignedStudy) -> list[str]:
    """The readers' paths."""
    return [line["path"] for line in csv.DictReader(designed.links.read_text("utf-8-sig").splitlines())]


def form(realism: int = 3, origin: str = "real", **fields: str) -> dict[str, str]:
    """A complete form."""
    return (
        dict.fromkeys(ITEMS, "3")
        | {"realism": str(realism), "origin": origin, "confidence": "2", "comment": ""}
        | fields
    )
