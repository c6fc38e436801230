from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nodule_plugin.data.generated import FORMAT, VERSION
from nodule_plugin.errors import InputError
from nodule_plugin.report.sheet import write_contact_sheet


def write_set(folder: Path) -> Path:
    folder.mkdir()
    items = []
    for number, (prompt, scale) in enumerate([("a", 1.0), ("a", 5.0), ("b", 1.0), ("b", 5.0)]):
        Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(folder / f"{number}.png")
        item = {"id": str(number), "image": f"{number}.png", "nifti": None, "prompt": prompt, "findings": None}
        items.append(item | {"guidance_scale": scale, "seed": 0, "size": [8, 8], "roi_mm": 20, "source_id": None})
    manifest = {"format": FORMAT, "version": VERSION, "synthetic": True, "window_hu": [-1000, 400], "images": items}
    manifest |= {"model": {}, "scheduler": "x", "num_inference_steps": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_more_prompts_make_a_taller_picture(tmp_path: Path) -> None:
    generated = write_set(tmp_path / "set")
    one = Image.open(write_contact_sheet(generated, tmp_path / "one.png", prompts=1))
    two = Image.open(write_contact_sheet(generated, tmp_path / "two.png"))
    assert two.height > one.height
    assert two.width == one.width


def test_a_plain_folder_is_refused(tmp_path: Path) -> None:
    generated = write_set(tmp_path / "set")
    (generated / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"set: no manifest\.json"):
        write_contact_sheet(generated, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
