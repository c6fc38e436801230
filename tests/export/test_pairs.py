from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from nodule_plugin.cli.tools import export_data
from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.transforms import nodule_transform
from nodule_plugin.errors import InputError
from nodule_plugin.export.pairs import export_pairs

SPLITS = {"training": "train", "validation": "validation", "test": "test"}


def grey(item: dict) -> np.ndarray:
    """What the chain gives, in 8 bits."""
    return np.rint((nodule_transform(32)(item)["image"][0].numpy() + 1) * 127.5).astype(np.uint8)


def test_an_imagefolder_holds_images_words_and_licence(
    phantom_datalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs"
    export_data([str(phantom_datalist), "--output", str(output), "--image-size", "32"])
    assert capsys.readouterr().out.startswith(f"{output}: training ")
    for split, name in SPLITS.items():
        items = load_datalist(phantom_datalist, split, drop_padded=True)
        lines = [json.loads(line) for line in (output / name / "metadata.jsonl").read_text().splitlines()]
        assert [(line["id"], line["text"], line["findings"]) for line in lines] == [
            (item["id"], item["prompt"], item["findings"]) for item in items
        ]
        assert {path.name for path in (output / name).glob("*.png")} == {line["file_name"] for line in lines}
        with Image.open(output / name / lines[-1]["file_name"]) as picture:
            assert np.array_equal(np.asarray(picture), grey(items[-1]))
            assert picture.mode == "L"
            assert picture.text["notice"].startswith("SYNTHETIC CT (phantom)")
            assert "CC BY 3.0" in picture.text["Copyright"]
    assert {path.name for path in output.iterdir()} == {"LICENSE", "README.md", *SPLITS.values()}
    assert "doi:10.7937/K9/TCIA.2015.LO9QL9SX" in (output / "LICENSE").read_text()
    card = DatasetCard.load(output / "README.md")
    assert (card.data.license, card.data.task_categories) == ("cc-by-3.0", ["text-to-image"])
    assert "black is -1000 HU and white is 400 HU; cut by the chain roi-cubic-2" in card.text


def test_shards_hold_the_same_and_are_the_same_bytes(phantom_datalist: Path, tmp_path: Path) -> None:
    items = load_datalist(phantom_datalist, "training", drop_padded=True)
    for name in ("a", "b"):
        counts = export_pairs("webdataset", phantom_datalist, tmp_path / name, 32, splits=["training"], shard_size=10)
        assert counts == {"training": len(items)}
    shards = sorted((tmp_path / "a").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"train-{number:06d}.tar" for number in range(-(-len(items) // 10))]
    samples: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        assert shard.read_bytes() == (tmp_path / "b" / shard.name).read_bytes()
        with tarfile.open(shard) as archive:
            first, *others = archive.getmembers()
            assert first.name == "LICENSE"
            assert {(member.mtime, member.uid, member.uname) for member in (first, *others)} == {(0, 0, "")}
            for member in others:
                key, _, ending = member.name.partition(".")
                samples.setdefault(key, {})[ending] = archive.extractfile(member).read()
    assert len(samples) == len(items)
    for sample, item in zip(samples.values(), items):
        assert set(sample) == {"json", "png", "txt"}
        assert sample["txt"].decode() == item["prompt"]
        assert json.loads(sample["json"])["findings"] == item["findings"]
    with Image.open(io.BytesIO(sample["png"])) as picture:
        assert np.array_equal(np.asarray(picture), grey(items[-1]))


@pytest.mark.parametrize("field", ["licence", "citation"])
def test_images_leave_only_with_their_licence(field: str, phantom_datalist: Path, tmp_path: Path) -> None:
    content = json.loads(phantom_datalist.read_text())
    del content[field]
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"datalist\.json: it names no licence and citation, and images leave only"):
        export_pairs("imagefolder", datalist, tmp_path / "out", 32)
    assert [path.name for path in tmp_path.iterdir()] == ["datalist.json"]


def test_a_split_named_twice_is_written_once(phantom_datalist: Path, tmp_path: Path) -> None:
    counts = export_pairs("imagefolder", phantom_datalist, tmp_path / "out", 16, splits=["test", "test"])
    assert counts == {"test": len(list((tmp_path / "out" / "test").glob("*.png")))}


def test_a_region_beyond_the_image_is_left_out(phantom_datalist: Path, tmp_path: Path) -> None:
    content = json.loads(phantom_datalist.read_text())
    content["training"][1]["padding"] = 0.1
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    options = {"splits": ["training"], "dataset_dir": content["dataset_dir"]}
    whole = export_pairs("imagefolder", phantom_datalist, tmp_path / "whole", 32, **options)
    fewer = export_pairs("imagefolder", tmp_path / "datalist.json", tmp_path / "fewer", 32, **options)
    assert fewer["training"] == whole["training"] - 1


def test_half_a_folder_never_stays(phantom_datalist: Path, tmp_path: Path) -> None:
    content = json.loads(phantom_datalist.read_text())
    broken = content["training"][-1]
    broken |= {"image": "broken.nii.gz", "padding": 0}
    (tmp_path / "broken.nii.gz").write_bytes(b"")
    for item in content["training"][:-1]:
        (tmp_path / item["image"]).parent.mkdir(exist_ok=True)
        (tmp_path / item["image"]).symlink_to(Path(content["dataset_dir"]) / item["image"])
    content["validation"] = content["test"] = []
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps(content | {"dataset_dir": str(tmp_path)}))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        export_pairs("imagefolder", datalist, tmp_path / "out", 32)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "parquet"}, "format: there is no 'parquet'; choose imagefolder or webdataset"),
        ({"shard_size": 0}, "shard_size: a whole number of 1 or above is needed, not 0"),
        ({"splits": ["train"]}, "there is no split 'train'"),
        ({"image_size": 0}, "image_size: a whole number from 1 to 4096 is needed, not 0"),
        ({"image_size": 10**6}, "image_size: a whole number from 1 to 4096"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    options: dict, message: str, phantom_datalist: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export_pairs(**{"form": "imagefolder", "datalist": phantom_datalist, "output_dir": tmp_path / "out"} | options)
    assert list(tmp_path.iterdir()) == []
