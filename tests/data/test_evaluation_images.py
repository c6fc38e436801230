from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from nodule_plugin.data.evaluation_images import (
    LoadSetImaged,
    conversions,
    describe_generated,
    generated_items,
    image_convention,
    image_size,
    joined_items,
    noise_items,
    other_kernel_items,
    real_items,
    study_items,
)
from nodule_plugin.data.generated import FORMAT, NOTICE
from nodule_plugin.data.image_set import ATTACK, DOSE, GENERATED, OTHER_KERNEL, REAL, ImageRecord, SetKey
from nodule_plugin.errors import InputError


def write_generated(
    folder: Path, scales: tuple[float, ...] = (1.0, 5.0), base_model: str = "models/tiny", **model: str
) -> Path:
    folder.mkdir(parents=True)
    images = []
    for scale in scales:
        for index in range(3):
            name = f"{scale:g}-{index}.png"
            Image.fromarray(np.full((32, 32), 40 * index, np.uint8)).save(folder / name)
            known = {"findings": None, "seed": index, "roi_mm": 20.0, "source_id": f"n{index}"}
            images.append({"id": name, "image": name, "prompt": f"p{index}", "guidance_scale": scale, **known})
    manifest = {"format": FORMAT, "version": 1, "synthetic": True, "notice": NOTICE, "window_hu": [-1000, 400]}
    manifest |= {
        "model": {"base_model": base_model, **model},
        "scheduler": "DDIM",
        "num_inference_steps": 5,
        "images": images,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_row_is_a_model_and_a_guidance_scale(tmp_path: Path) -> None:
    items = generated_items(write_generated(tmp_path / "a"))
    assert {(item["set"].kind, item["set"].model, item["set"].guidance_scale) for item in items} == {
        (GENERATED, "tiny", 1.0),
        (GENERATED, "tiny", 5.0),
    }
    assert items[1]["record"].prompt == "p1"
    assert items[1]["record"].source_id == "n1"
    assert image_size(items) == (32, 32)


def test_sets_of_one_base_model_are_told_apart_by_folder(tmp_path: Path) -> None:
    folders = [write_generated(tmp_path / name, (1.0,)) for name in ("a", "b")]
    assert {item["set"].model for item in generated_items(folders)} == {"tiny (a)", "tiny (b)"}
    described = describe_generated(folders)
    assert [(entry["folder"], entry["count"], entry["scheduler"]) for entry in described] == [
        ("a", 3, "DDIM"),
        ("b", 3, "DDIM"),
    ]
    assert "images" not in described[0]


def test_ratings_count_as_far_as_the_prompt_words_them(tmp_path: Path) -> None:
    folder = write_generated(tmp_path / "a", (1.0,))
    manifest = json.loads((folder / "manifest.json").read_text())
    findings = {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 3, "lobulation": 4}
    for item, prompt in zip(
        manifest["images"],
        (
            "The nodule is round in shape, solid internally, with well-defined margins. calcification is seen.",
            "in words of its own",
            "p2",
        ),
    ):
        item |= {"prompt": prompt, "findings": findings}
    manifest["images"][2] |= {"findings": None, "seed": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    records = [item["record"] for item in generated_items(folder)]
    assert records[0].ratings == {name: code for name, code in findings.items() if name != "lobulation"}
    assert records[1].ratings == findings
    assert records[2].ratings == {}
    assert [record.seed for record in records] == [0, 1, None]
    with pytest.raises(InputError, match=r"dose response set .*: image 1-2\.png has no findings"):
        study_items(DOSE, folder)
    assert study_items(ATTACK, folder)[0]["set"].kind == ATTACK
    assert study_items(DOSE, None) == []


def test_images_of_another_chain_are_not_compared(tmp_path: Path) -> None:
    folders = [write_generated(tmp_path / "old"), write_generated(tmp_path / "new", chain="roi-cubic-2")]
    assert len(generated_items(folders, chain="roi-cubic-2")) == len(generated_items(folders)) == 12
    message = r"the model of .*new learnt from images cut by roi-cubic-2, the real ones are cut by roi-linear-2"
    with pytest.raises(InputError, match=message):
        generated_items(folders, chain="roi-linear-2")
    folders.append(write_generated(tmp_path / "third", chain="roi-linear-2"))
    with pytest.raises(
        InputError, match=r"third learnt from images cut by roi-linear-2, that of .*new from images cut by"
    ):
        generated_items(folders)
    with pytest.raises(InputError, match=message):
        study_items(ATTACK, folders[1], chain="roi-linear-2")


def test_all_items_are_numbered() -> None:
    joined = joined_items([{"a": 1}], [], [{"a": 2}, {"a": 3}])
    assert [(item["index"], item["a"]) for item in joined] == [(0, 1), (1, 2), (2, 3)]


def test_a_folder_of_pictures_and_slices_is_real_images(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (128, 128, 128)).save(tmp_path / "one.jpg")
    hu = np.full((12, 8), -300, np.int16)
    hu[3, 5] = 400
    nibabel.Nifti1Image(hu[:, :, None], np.eye(4)).to_filename(tmp_path / "two.nii")
    (tmp_path / "two.nii").rename(tmp_path / "two.NII")
    for name in ("notes.txt", "._one.jpg", "._two.nii.gz"):  # macOS's are no images, whatever they are called
        (tmp_path / name).write_text("not an image")
    items = real_items(real_dir=tmp_path)
    load = LoadSetImaged(window_hu=(-1000, 400))
    picture, volume = (load(item) for item in items)
    assert [item["record"].id for item in (picture, volume)] == ["one", "two"]
    assert picture["image"].shape == (3, 10, 20)
    assert picture["image"].mean() == pytest.approx(128 / 127.5 - 1, abs=0.02)
    # (x, y) in the file is (column, row) in the image.
    assert volume["image"].shape == (3, 8, 12)
    assert volume["image"][0, 5, 3] == 1
    assert volume["image"][0, 0, 0] == 0


def test_pictures_of_another_size_or_depth_are_converted_with_a_word(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    for name, picture in {
        "large": Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC),
        "same": Image.fromarray(grey),
        "deep": Image.fromarray(grey.astype(np.uint16) * 257),
    }.items():
        picture.save(tmp_path / f"{name}.png")
    items = real_items(real_dir=tmp_path)
    assert [item["record"].native_pixels for item in items] == [32, 64, 32]
    deep, large, same = (LoadSetImaged((32, 32), one_size=True)(item)["image"] for item in items)
    torch.testing.assert_close(same, deep)
    assert large.shape == same.shape
    assert (large - same).abs().max() < 0.1
    sized, rounded = conversions(items, (32, 32))
    assert sized.startswith("1 of 3 real images were of another size (64 x 64 pixels) and are brought to 32 x")
    assert "1 of 3 real images had 16 bits" in rounded
    assert conversions(items[2:], (32, 32)) == []
    with pytest.raises(InputError, match=r"large\.png has 64 x 64 pixels, another shape than 32 x 48"):
        LoadSetImaged((32, 48), one_size=True)(items[1])


def test_the_same_regions_are_cut_by_the_other_kernel(tmp_path: Path) -> None:
    ct = np.random.default_rng(0).normal(-300, 200, (40, 40, 1)).astype(np.int16)
    nibabel.Nifti1Image(ct, np.diag([0.7, 0.7, 1.0, 1.0])).to_filename(tmp_path / "a.nii.gz")
    nodule = {"image": str(tmp_path / "a.nii.gz"), "slice_index": 0, "centre": [20.0, 20.0], "spacing": [0.7, 0.7]}
    real = [{**nodule, "roi_mm": 14.0, "set": SetKey(REAL, "real images"), "record": ImageRecord("a")}]
    (again,) = other_kernel_items(real, "cubic")
    assert again["set"] == OTHER_KERNEL
    load = LoadSetImaged((64, 64), kernel="cubic")
    cubic, linear = load(real[0])["image"], load(again)["image"]
    assert not torch.equal(cubic, linear)
    assert torch.equal(linear, LoadSetImaged((64, 64), kernel="linear")(real[0])["image"])
    assert other_kernel_items([{"image": "a.png"}]) == []


def test_how_images_were_made_is_said_in_words_and_numbers() -> None:
    assert image_convention("roi-linear-2", (-1000, 400), (64, 64)) == {
        **{"chain": "roi-linear-2", "kernel": "linear", "window_hu": "-1000 to 400", "bits": 8, "image_size": "64 x 64"}
    }
    assert image_convention(None)["kernel"] == "not known"


def test_real_images_may_come_with_prompts(tmp_path: Path) -> None:
    items = real_items(real_dir=write_generated(tmp_path / "a", (1.0,)))
    assert {item["set"].kind for item in items} == {REAL}
    assert [item["record"].prompt for item in items] == ["p0", "p1", "p2"]


def test_noise_is_the_same_for_a_seed(tmp_path: Path) -> None:
    load = LoadSetImaged()
    first, again, other = (load(noise_items(1, (16, 16), seed)[0])["image"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 16, 16)
    assert torch.equal(first[0], first[2])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "give either real_dir or datalist"),
        ({"real_dir": "a", "datalist": "b"}, "give either real_dir or datalist"),
        ({"real_dir": "/absent"}, "there is no folder /absent"),
    ],
)
def test_unusable_real_images_are_named(sources: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        real_items(**sources)


def test_empty_folders_and_volumes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        real_items(real_dir=tmp_path)
    with pytest.raises(InputError, match="there is none"):
        image_size([])
    nibabel.Nifti1Image(np.zeros((4, 4, 3), np.int16), np.eye(4)).to_filename(tmp_path / "volume.nii.gz")
    with pytest.raises(InputError, match="one slice is needed"):
        LoadSetImaged()(real_items(real_dir=tmp_path)[0])
    nibabel.Nifti1Image(np.full((4, 4), np.nan, np.float32), np.eye(4)).to_filename(tmp_path / "volume.nii.gz")
    with pytest.raises(InputError, match=r"volume\.nii\.gz has values that are not finite"):
        LoadSetImaged()(real_items(real_dir=tmp_path)[0])
    (tmp_path / "volume.nii.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match="is not a whole NIfTI file"):
        LoadSetImaged()(real_items(real_dir=tmp_path)[0])


def test_regions_of_a_data_list_are_cut_windowed_and_resized(real_data: Path) -> None:
    volume = real_data / "lidc_nodule_crops" / "images" / "LIDC-IDRI-0001_R_1.nii.gz"
    item = {"image": str(volume), "slice_index": 3, "centre": [25.0, 25.0], "spacing": [0.7, 0.7], "roi_mm": 20.0}
    key = generated_items  # any object: the transform hands it on
    loaded = LoadSetImaged(size=(64, 64))(item | {"set": key, "record": None})
    assert loaded["image"].shape == (3, 64, 64)
    assert loaded["image"].min() >= -1
    assert loaded["image"].max() <= 1
    assert loaded["image"].std() > 0.05
    assert set(loaded) == {"image", "set", "record"}
