from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.entries import check_numbers, file_below, file_safe_id, readable_id
from nodule_plugin.data.evaluation_images import generated_items, real_items, study_items
from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.image_set import DOSE
from nodule_plugin.errors import InputError

ENTRY = {
    "id": "a",
    "image": "a.png",
    "prompt": "one",
    "findings": {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 6},
    "guidance_scale": 5.0,
    "seed": 0,
    "size": [2, 2],
    "roi_mm": 20.0,
    "spacing_mm": [10.0, 10.0],
    "source_id": None,
}
LISTED = {
    "id": "LIDC 0001/1", "image": "a.png", "slice_index": 0, "centre": [9.5, 9], "spacing": [0.7, 0.7], "prompt": "one",
    "diameter_mm": 8, "roi_mm": 16, "padding": 0,
}  # fmt: skip


def a_set(folder: Path, window_hu: Any = (-1000, 400), **change: Any) -> Path:
    folder.mkdir()
    Image.new("L", (2, 2)).save(folder / "a.png")
    manifest = {
        "format": "nodule-plugin generated set", "version": 1, "synthetic": True, "window_hu": window_hu, "model": {},
        "scheduler": "DDIM", "num_inference_steps": 2, "images": [{**ENTRY, **change}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def a_datalist(folder: Path, **change: Any) -> Path:
    (folder / "images").mkdir()
    for name in ("images/a.png", "b.png"):
        Image.new("L", (2, 2)).save(folder / name)
    content = {"dataset_dir": "images", "training": [], "validation": [], "test": [{**LISTED, **change}]}
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder / "datalist.json"


@pytest.mark.parametrize("name", ["prompt000_g1.5_s0", "LIDC-IDRI-0001-N01_g3_s1", "_a"])
def test_ids_that_name_files(name: str) -> None:
    assert file_safe_id("x", name) == name


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "a\\b", ".a", "-a", "", "a b", "ä", "a\n", "a\0", "x" * 201, 3, None, ["a"]]
)
def test_ids_that_do_not(name: Any) -> None:
    with pytest.raises(InputError, match=r"^request\.json: requests\[0\]: field 'id': ") as caught:
        file_safe_id("request.json: requests[0]", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["LIDC 0001/1", "結節 1", "x" * 200])
def test_ids_that_are_only_shown(name: str) -> None:
    assert readable_id("x", name) == name


@pytest.mark.parametrize("name", [" ", "a\x1b[2J", "a\nb", "x" * 201, 7])
def test_ids_that_cannot_be_shown(name: Any) -> None:
    with pytest.raises(InputError, match="field 'id'"):
        readable_id("x", name)


@pytest.mark.parametrize(
    "name", ["../b.png", "images/../../b.png", "{root}/b.png", "/etc/passwd", "a.png\0", 3, ["a.png"], ""]
)
def test_paths_stay_below_their_folder(name: Any, tmp_path: Path) -> None:
    file = a_datalist(tmp_path)
    given = name.format(root=tmp_path) if isinstance(name, str) else name
    with pytest.raises(InputError, match=r"field 'image': "):
        file_below("x", "image", tmp_path / "images", given)
    assert file_below("x", "image", tmp_path, "images/../b.png") == tmp_path / "b.png"
    assert load_datalist(file, "test")[0]["image"] == str(tmp_path / "images" / "a.png")


BAD_NUMBERS = [
    ("roi_mm", 0), ("roi_mm", -1), ("roi_mm", 20000), ("roi_mm", math.nan), ("roi_mm", math.inf), ("roi_mm", "20"),
    ("roi_mm", True), ("spacing_mm", [0.5, 0]), ("spacing_mm", [0.5, -0.5]), ("size", [0, 64]), ("size", [10**6, 64]),
    ("guidance_scale", -1), ("seed", -1), ("seed", 2**64),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_NUMBERS)
def test_numbers_of_a_manifest_are_finite_and_in_their_limits(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"images\[0\]: field '{field}': "):
        load_generated(a_set(tmp_path / "set", **{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("spacing", [0, 0.7]), ("centre", [math.nan, 1]), ("diameter_mm", math.inf), ("roi_mm", 20000), ("padding", 2),
     ("slice_index", -1), ("id", "a\x1b"), ("image", "../b.png")],
)  # fmt: skip
def test_entries_of_a_data_list_are_checked(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"datalist\.json: test\[0\]: field '{field}': "):
        load_datalist(a_datalist(tmp_path, **{field: value}), "test")


def test_what_is_missing_has_no_limits() -> None:
    check_numbers("x", {"roi_mm": None, "seed": 0, "spacing_mm": (0.1, 0.1)})


@pytest.mark.parametrize("field", ["id", "image", "nifti", "dicom"])
def test_a_manifest_cannot_name_files_elsewhere(field: str, tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    with pytest.raises(InputError, match=rf"images\[0\]: field '{field}': '\.\./b\.png'"):
        load_generated(a_set(tmp_path / "set", **{field: "../b.png"}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"images": [{"image": "../b.png"}]}')
    with pytest.raises(InputError, match=r"field 'image': '\.\./b\.png' is no path below"):
        load_generated(tmp_path / "other")


@pytest.mark.parametrize("window", [[400, -1000], [0, 0], [0], None, "ab", [-math.inf, 0], [math.nan, 1], ["a", "b"]])
def test_windows_of_a_manifest_are_in_order(window: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json: window_hu: two rising numbers"):
        load_generated(a_set(tmp_path / "set", window))


def test_sets_of_another_window_are_not_compared(tmp_path: Path) -> None:
    lung, soft = a_set(tmp_path / "lung"), a_set(tmp_path / "soft", [-160, 240])
    assert (
        len(generated_items([lung], window_hu=(-1000, 400))) == len(generated_items(soft, window_hu=[-160, 240])) == 1
    )
    for items in (
        lambda: generated_items([lung, soft], window_hu=(-1000, 400)),
        lambda: real_items(soft, window_hu=(-1000, 400)),
        lambda: study_items(DOSE, soft, window_hu=(-1000, 400)),
    ):
        with pytest.raises(InputError, match=r"soft: its black and white are \(-160\.0, 240\.0\) HU, not \(-1000\.0"):
            items()
