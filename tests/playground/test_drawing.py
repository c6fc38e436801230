from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
from nodule_plugin.data.generated import NOTICE, load_generated
from nodule_plugin.diffusion.model import Source
from nodule_plugin.errors import InputError
from nodule_plugin.playground.drawing import (
    GUIDANCE_SCALES,
    LARGEST,
    START,
    Drawing,
    Order,
    Studio,
    TrainingImages,
    read_order,
    sizes,
    worded,
)

FINDINGS = START.to_dict()
QUICK = Order(FINDINGS, steps=2, size=16, seed=5, count=3)


def test_an_order_asks_for_seeds_scales_and_steps_of_a_finding() -> None:
    assert [request["seed"] for request in QUICK.grid()] == [5, 6, 7]
    assert [request["seed"] for request in QUICK.one()] == [5]
    assert [request["guidance_scale"] for request in QUICK.guidance_row()] == list(GUIDANCE_SCALES)
    moved = QUICK.sweep("spiculation")
    assert [request["findings"]["spiculation"] for request in moved] == [1, 2, 3, 4, 5]
    assert {request["seed"] for request in moved} == {5}
    assert moved[-1]["prompt"].endswith("marked spiculation is seen.")
    assert {request["findings"]["margin"] for request in moved} == {FINDINGS["margin"]}


@pytest.mark.parametrize(
    ("changed", "rating", "message"),
    [
        ({}, "lobulation", "does not word 'lobulation'"),
        ({"prompt": "A nodule."}, "margin", "a free prompt has no findings to move"),
    ],
)
def test_what_cannot_be_moved_is_named(changed: dict, rating: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Order(FINDINGS, **changed).sweep(rating)


@pytest.mark.parametrize(("name", "value"), [("count", 17), ("steps", 51), ("size", 1024), ("steps", 0)])
def test_an_order_has_limits(name: str, value: int) -> None:
    with pytest.raises(InputError, match=r"a whole number from 1 to"):
        Order(FINDINGS, **{name: value})


@pytest.mark.parametrize("name", ["seed", "margin"])
def test_a_field_that_is_empty_is_named(name: str) -> None:
    given = {**dict.fromkeys(worded("reference"), 3), "seed": 0, name: None}
    with pytest.raises(InputError, match=f"{name}: the field is empty; give a number"):
        read_order("reference", "findings", "", **given)


def test_no_size_is_offered_that_an_order_may_not_have(source: Source) -> None:
    assert sizes(64) == [64, 128]
    assert sizes(512) == [512]
    assert sizes(768) == [768]  # Stable Diffusion 2 with v-prediction
    with pytest.raises(InputError, match=f"image_size: a whole number from 1 to {LARGEST} is needed, not 1024"):
        Studio(replace(source, image_size=1024))


def test_the_same_seed_gives_the_same_image_alone_and_in_a_grid(studio: Studio) -> None:
    grid = list(studio.draw(QUICK.grid(), QUICK))
    (alone,) = studio.draw(QUICK.one(), QUICK)
    assert [drawing.unit.shape for drawing in grid] == [(16, 16)] * 3
    np.testing.assert_array_equal(alone.unit, grid[0].unit)
    assert np.abs(grid[0].unit - grid[1].unit).max() > 0.01


def test_a_download_is_a_generated_set(studio: Studio, tmp_path: Path) -> None:
    drawings = list(studio.draw(QUICK.grid(), QUICK))
    packed = studio.write(drawings, QUICK, ["nifti", "dicom"], tmp_path / "set")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    made = load_generated(tmp_path / "unpacked")
    assert made.manifest is not None
    assert made.manifest["notice"] == NOTICE
    assert made.manifest["num_inference_steps"] == 2
    assert [item["prompt"] for item in made.items] == [request["prompt"] for request in QUICK.grid()]
    for item in made.items:
        assert all(Path(item[name]).is_file() for name in ("image", "nifti", "dicom", "dicom_report"))


def test_quick_drawing_is_by_the_model_of_few_steps(quick_source: Source, tmp_path: Path) -> None:
    studio, order = Studio(quick_source), replace(QUICK, quick=True, guidance=7.0, steps=50)
    assert studio.quick is not None
    (drawing,) = drawings = list(studio.draw(order.one(), order))
    assert drawing.request["guidance_scale"] == 1.0
    packed = studio.write(drawings, order, [], tmp_path / "set")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    manifest = load_generated(tmp_path / "unpacked").manifest
    assert manifest is not None
    assert (manifest["scheduler"], manifest["num_inference_steps"]) == ("DDIMScheduler", 4)
    assert manifest["model"]["weights_sha256"] == studio.quick.sha256 != studio.model.sha256
    slow = replace(order, quick=False, steps=2)
    (other,) = studio.draw(slow.one(), slow)
    assert other.request["guidance_scale"] == 7.0
    assert np.abs(other.unit - drawing.unit).max() > 0.01


def test_a_model_without_few_steps_draws_in_its_own(studio: Studio) -> None:
    assert studio.quick is None
    (drawing,) = studio.draw(QUICK.one(), QUICK)
    (same,) = studio.draw(QUICK.one(), replace(QUICK, quick=True))
    np.testing.assert_array_equal(same.unit, drawing.unit)


def test_a_copy_of_a_training_image_is_warned_of(phantom_datalist: Path) -> None:
    window = (-1000.0, 400.0)
    training = TrainingImages(phantom_datalist, 32, window)
    item = real_items(datalist=phantom_datalist, split="training")[3]
    image = LoadSetImaged((32, 32), window)(item)["image"][0].numpy()
    near = training.nearest(Drawing({}, image[:, ::-1].copy() * 0.9))  # mirrored and of less contrast
    assert near.suspicious
    assert near.id == item["record"].id
    noise = np.random.default_rng(0).uniform(-1, 1, (32, 32)).astype(np.float32)
    assert not training.nearest(Drawing({}, noise)).suspicious


def test_only_what_a_template_words_is_shown() -> None:
    assert worded("reference") == ["sphericity", "margin", "texture", "spiculation", "calcification"]
    assert set(worded("detailed")) - set(worded("reference")) == {"lobulation", "malignancy"}
