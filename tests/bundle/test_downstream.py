"""downstream.json as a user runs it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from bundle_command import run_config
from crops_folder import write_crops
from monai.bundle import run
from PIL import Image

from nodule_plugin.data.generated import FORMAT, NOTICE

FINDINGS = {"sphericity": 4, "margin": 4, "spiculation": 1, "calcification": 6}


@pytest.fixture
def datalist(repository: Path, tmp_path: Path) -> Path:
    """A data list of 60 crops, every other one subsolid."""
    crops = write_crops(tmp_path / "crops", count=60)
    with (crops / "nodules.csv").open(newline="") as file:
        rows = [row | {"texture": str((1, 5)[place % 2])} for place, row in enumerate(csv.DictReader(file))]
    with (crops / "nodules.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = repository / "bundle" / "configs" / "prepare.json"
    settings = {"dataset_dir": str(crops), "datalist": str(tmp_path / "datalist.json"), "page": False}
    run(config_file=str(config), bundle_root=str(repository / "bundle"), **settings)
    return tmp_path / "datalist.json"


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """A generated set of 10 images, every other one subsolid."""
    folder = tmp_path / "generated"
    folder.mkdir()
    draw, images = np.random.default_rng(0), []
    for place in range(10):
        Image.fromarray(draw.integers(0, 255, (32, 32)).astype(np.uint8)).save(folder / f"{place}.png")
        known = {"prompt": "a nodule", "guidance_scale": 1.5, "seed": 0, "roi_mm": 20.0, "source_id": None}
        asked = FINDINGS | {"texture": (1, 5)[place % 2]}
        images.append({"id": str(place), "image": f"{place}.png", "findings": asked, **known})
    manifest = {"format": FORMAT, "version": 1, "synthetic": True, "notice": NOTICE, "window_hu": [-1000, 400]}
    manifest |= {"model": {"base_model": "tiny"}, "scheduler": "DDIM", "num_inference_steps": 5, "images": images}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_documented_command(repository: Path, datalist: Path, generated: Path, tmp_path: Path) -> None:
    small = {"classifier_steps": 2, "classifier_seeds": 0, "resamples": 10}
    settings = {
        "datalist": datalist,
        "generated_dir": generated,
        "output_dir": tmp_path / "out",
        "drop_padded": False,
        **small,
    }
    done = run_config(repository, "downstream", **settings)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out" / "downstream.json") in done.stdout
    results = json.loads((tmp_path / "out" / "downstream.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == ["real", "synthetic, all", "real and synthetic"]
    real, synthetic, both = (arm["images"] for arm in results["arms"])
    assert (synthetic, both) == (10, real + 10)
    assert real + results["settings"]["test_images"] == 60
    assert results["settings"]["seeds"] == [0]
    measured = {name: value is not None for name, value in results["arms"][0]["auroc"].items()}
    assert measured["subsolid"]
    assert not measured["calcified"]  # no crop is


def test_a_set_without_findings_is_one_clear_error(
    repository: Path, datalist: Path, generated: Path, tmp_path: Path
) -> None:
    manifest = json.loads((generated / "manifest.json").read_text())
    for image in manifest["images"]:
        image["findings"] = None
    (generated / "manifest.json").write_text(json.dumps(manifest))
    settings = {"datalist": datalist, "generated_dir": generated, "output_dir": tmp_path / "out"}
    done = run_config(repository, "downstream", drop_padded=False, **settings)
    assert done.returncode != 0
    assert "generated images: none has findings" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
