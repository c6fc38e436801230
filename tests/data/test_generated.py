from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.picture import read_picture
from nodule_plugin.errors import InputError

ITEM = {
    "id": "a",
    "image": "png/a.png",
    "nifti": None,
    "prompt": "one",
    "findings": None,
    "guidance_scale": 5.0,
    "seed": 0,
    "size": [2, 2],
    "roi_mm": 20.0,
    "spacing_mm": [10.0, 10.0],
    "source_id": None,
}
MANIFEST: dict[str, Any] = {
    "format": "nodule-plugin generated set",
    "version": 1,
    "synthetic": True,
    "window_hu": [-160, 240],
    "model": {"base_model": "tiny", "weights_sha256": "0", "prediction_type": "epsilon"},
    "scheduler": "DPMSolverMultistepScheduler",
    "num_inference_steps": 25,
    "images": [ITEM, {**ITEM, "id": "b", "guidance_scale": 9.0}],
}


def write(folder: Path, manifest: Any) -> None:
    (folder / "png").mkdir()
    Image.fromarray(np.array([[0, 255], [51, 204]], np.uint8)).save(folder / "png" / "a.png")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_set_with_manifest(tmp_path: Path) -> None:
    write(tmp_path, MANIFEST)
    generated = load_generated(tmp_path)
    assert generated.window_hu == (-160, 240)
    assert generated.guidance_scales == [5.0, 9.0]
    assert [item["id"] for item in generated.at_scale(5)] == ["a"]
    assert generated.items[0]["image"] == str(tmp_path / "png" / "a.png")
    np.testing.assert_allclose(read_picture(generated.items[0]["image"]), [[-1, 1], [-0.6, 0.6]], atol=1e-6)


def test_plain_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    generated = load_generated(tmp_path)
    assert generated.manifest is None
    assert [item["id"] for item in generated.items] == ["a", "b"]
    assert generated.items[0]["prompt"] is None
    assert generated.guidance_scales == []
    assert read_picture(generated.items[0]["image"]).shape == (4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "manifest.json: field 'format'"),
        ({"version": 2}, "manifest.json: version 2 is not 1"),
        ({"model": None}, "field 'model': an object is needed, not None"),
        ({"images": []}, "field 'images' lists no image"),
        ({"images": [{**ITEM, "image": "png/c.png"}]}, r"images\[0\]: field 'image': there is no file .*c.png"),
        ({"images": [ITEM, {"id": "b"}]}, r"images\[1\]: field 'image' is missing"),
        ({"images": ["a"]}, r"images\[0\]: an object is needed"),
        ({"images": [{**ITEM, "id": "../a"}]}, r"images\[0\]: field 'id': '../a' cannot name a file"),
        ({"images": [{**ITEM, "roi_mm": -20}]}, r"images\[0\]: field 'roi_mm': -20 is not from 0.001 to 1000"),
        ({"window_hu": [240, -160]}, "manifest.json: window_hu: two rising numbers are needed"),
    ],
)
def test_damaged_manifest_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, {**MANIFEST, **change})
    with pytest.raises(InputError, match=message):
        load_generated(tmp_path)


def test_somebody_elses_manifest_needs_no_more_than_pictures_and_prompts(tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    for name in ("b.png", "png/a.png", "unlisted.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    listed = [{"image": "png/a.png", "prompt": "round", "guidance_scale": 5}, {"image": "b.png"}]
    (tmp_path / "manifest.json").write_text(json.dumps({"images": listed}))
    generated = load_generated(tmp_path)
    assert generated.manifest is None
    assert [(item["id"], item["prompt"]) for item in generated.items] == [("png/a", "round"), ("b", None)]
    assert generated.guidance_scales == [5]
    assert generated.items[1].keys() == generated.items[0].keys() >= ITEM.keys()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "field 'images' lists no image"),
        (["a.png"], r"images\[0\]: an object with the field 'image'"),
        ([{"image": "a.png"}, {"image": "absent.png"}], r"images\[1\]: field 'image': there is no file .*absent.png"),
        ([{"image": "a.png", "prompt": 3}], "field 'prompt': 3 is of another kind"),
        ([{"image": "a.png", "guidance_scale": "5"}], "field 'guidance_scale': '5' is of another kind"),
        ([{"image": "a.png", "guidance_scale": -1}], "field 'guidance_scale': -1 is not from 0"),
    ],
)
def test_what_is_wrong_in_somebody_elses_manifest_is_named(images: list[Any], message: str, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "manifest.json").write_text(json.dumps({"images": images}))
    with pytest.raises(InputError, match=message):
        load_generated(tmp_path)


def test_missing_field_is_named(tmp_path: Path) -> None:
    write(tmp_path, {name: value for name, value in MANIFEST.items() if name != "window_hu"})
    with pytest.raises(InputError, match="field 'window_hu' is missing"):
        load_generated(tmp_path)


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        load_generated(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds neither manifest.json nor a picture"):
        load_generated(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json: not JSON"):
        load_generated(tmp_path)


def test_what_a_file_manager_leaves_is_no_picture(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    assert [item["id"] for item in load_generated(tmp_path).items] == ["a"]
