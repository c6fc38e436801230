from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from crops_folder import write_crops

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.datalist import (
    build_datalist,
    ensure_datalist,
    load_datalist,
    summarise,
    write_datalist,
)
from nodule_plugin.data.nodule import NoduleSet, Skipped
from nodule_plugin.data.split import SPLITS, split_by_patient
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.selection import get_selection
from nodule_plugin.prompts import findings_to_prompt

KEYS = (
    "name description licence citation source synthetic dataset_dir template chain consensus selection split skipped"
    " doubts numTraining numValidation numTest training validation test"
)
ITEM_KEYS = (
    "id image slice_index axes centre spacing diameter_mm roi_mm padding prompt findings readers patient_id"
    " series_instance_uid synthetic"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_crops(tmp_path / "crops", count=12)


@pytest.fixture
def nodules(folder: Path) -> NoduleSet:
    return nodules_from_crops(folder)


@pytest.fixture
def written(nodules: NoduleSet, tmp_path: Path) -> Path:
    return write_datalist(build_datalist(nodules), tmp_path / "out" / "datalist.json")


def _change(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_content(nodules: NoduleSet, folder: Path) -> None:
    nodules.skipped.append(Skipped("x", "too small"))
    selection = get_selection(min_diameter_mm=5)
    content = build_datalist(nodules, template="detailed", ratios=(3, 2, 1), seed=5, selection=selection)
    assert list(content) == KEYS.split()
    assert (content["source"], content["synthetic"], content["dataset_dir"]) == ("crops", False, str(folder))
    assert content["template"] == {"name": "detailed", "version": 1}
    assert content["selection"] == {"min_readers": 1, "min_diameter_mm": 5}
    assert content["split"] == {"ratios": [3, 2, 1], "seed": 5}
    assert content["skipped"] == [{"what": "x", "reason": "too small"}]
    assert (content["licence"], content["consensus"]) == ("CC BY 3.0", "given")
    assert "10.7937/K9/TCIA.2015.LO9QL9SX" in content["citation"][0]
    assert [content[f"num{split.capitalize()}"] for split in SPLITS] == [6, 4, 2] == [len(content[p]) for p in SPLITS]
    drawn = split_by_patient(nodules.nodules, (3, 2, 1), seed=5)
    assert [[item["id"] for item in content[split]] for split in SPLITS] == [[n.id for n in drawn[s]] for s in SPLITS]
    assert content["training"] != build_datalist(nodules, template="detailed", ratios=(3, 2, 1))["training"]
    assert json.loads(json.dumps(content)) == content


def test_item(nodules: NoduleSet) -> None:
    content = build_datalist(nodules)
    item = content["training"][0]
    nodule = next(nodule for nodule in nodules.nodules if nodule.id == item["id"])
    assert list(item) == ITEM_KEYS.split()
    assert item["image"] == f"images/{item['id']}.nii.gz"
    assert (item["slice_index"], item["centre"]) == (3, [12.0, 8.0])
    assert item["spacing"] == pytest.approx([0.7, 0.5])  # between rows, between columns
    assert (item["diameter_mm"], item["roi_mm"]) == (6.5, 13.0)
    assert item["prompt"] == findings_to_prompt(nodule.findings)
    assert item["findings"] == nodule.findings.to_dict()
    assert item["readers"] == nodule.readers == 3
    # 13 mm are 19 rows of 0.7 mm from row 3 and 26 columns of 0.5 mm from column -4, of which the image has 20.
    assert item["padding"] == pytest.approx(1 - 20 / 26)


def test_nothing_to_list(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no nodule to list"):
        build_datalist(NoduleSet("crops", folder, "given"))


def test_ids_must_differ(nodules: NoduleSet) -> None:
    nodules.nodules.append(nodules.nodules[0])
    with pytest.raises(InputError, match="two nodules have the id 'P0_R_1'"):
        build_datalist(nodules)


def test_empty_split_is_logged(nodules: NoduleSet, caplog: pytest.LogCaptureFixture) -> None:
    nodules.nodules = nodules.nodules[:2]
    with caplog.at_level(logging.WARNING):
        content = build_datalist(nodules)
    assert content["validation"] == []
    assert "the validation split is empty" in caplog.text


def test_round_trip(written: Path, folder: Path, nodules: NoduleSet) -> None:
    items = [item for split in SPLITS for item in load_datalist(written, split)]
    assert {item["id"]: item["image"] for item in items} == {n.id: str(n.image) for n in nodules.nodules}
    assert [path.name for path in written.parent.iterdir()] == ["datalist.json"]


def test_images_elsewhere(written: Path, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"datalist\.json: training\[0\]: field 'image': there is no file"):
        load_datalist(written, "training")
    [item, *_] = load_datalist(written, "training", dataset_dir=tmp_path / "moved")
    assert item["image"].startswith(str(tmp_path / "moved"))
    _change(written, lambda content: content.update(dataset_dir="../moved"))  # as seen from the data list
    assert Path(load_datalist(written, "training")[0]["image"]).samefile(item["image"])


def test_drop_padded(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    _change(written, lambda content: content["training"][0].update(padding=0))
    whole = load_datalist(written, "training")
    with caplog.at_level(logging.INFO):
        kept = load_datalist(written, "training", drop_padded=True)
    assert kept == whole[:1]
    assert f"{len(whole) - 1} of {len(whole)} left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["training"][1].pop("prompt"), r"training\[1\]: the field 'prompt' is missing"),
        (lambda c: c.pop("training"), "it holds no list 'training'"),
        (lambda c: c["training"].insert(0, 5), r"training\[0\]: an object is needed, not 5"),
        (lambda c: c.pop("dataset_dir"), "it does not say its dataset_dir"),
        (lambda c: c["training"][1].update(prompt=5), r"training\[1\]: field 'prompt': 5 is no text"),
        (lambda c: c["training"][1].update(prompt=" "), r"training\[1\]: field 'prompt': ' ' is no text"),
        (
            lambda c: c["training"][1].update(findings={"margin": 9}),
            r"training\[1\]: field 'findings': margin: whole numbers 1 to 5 are ratings, not 9",
        ),
        (
            lambda c: c["training"][1].update(findings={"size": 1}),
            r"field 'findings': findings: no rating is called 'size'",
        ),
        (lambda c: c["training"][1].update(findings=[5]), r"training\[1\]: field 'findings': \[5\] is no object"),
        (lambda c: c.update(licence=3), "field 'licence': 3 is no text; correct it"),
        (lambda c: c.update(template="reference"), "field 'template': 'reference' is no object"),
        (lambda c: c.update(citation=[None]), "field 'citation': a list of texts"),
        (lambda c: c.update(synthetic="no"), "field 'synthetic': 'no' is no true or false"),
    ],
)
def test_what_a_data_list_lacks_is_named(written: Path, change: Any, message: str) -> None:
    _change(written, change)
    with pytest.raises(InputError, match=message) as caught:
        load_datalist(written, "training")
    assert str(written) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a data list"),
        ('{"training": [], "dataset_dir": null}', "not a data list"),  # a configuration of the bundle
        (None, "cannot be read"),
    ],
)
def test_file_that_is_no_data_list(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "datalist.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rf"datalist\.json: {message}"):
        load_datalist(path, "training")


def test_unknown_split(written: Path) -> None:
    with pytest.raises(InputError, match="there is no split 'train'"):
        load_datalist(written, "train")


@pytest.mark.parametrize("content", ["image,patient_id\na.nii.gz,P0\n", '{"name": "settings"}'])
def test_a_file_that_is_no_data_list_is_not_replaced(nodules: NoduleSet, tmp_path: Path, content: str) -> None:
    table = tmp_path / "nodules.csv"
    table.write_text(content)
    with pytest.raises(InputError, match=r"^datalist: \S+nodules\.csv is there and no data list; give another path"):
        write_datalist(build_datalist(nodules), table)
    assert table.read_text() == content
    table.write_text("")
    for _ in range(2):  # an empty file, then a data list
        write_datalist(build_datalist(nodules), table)


def test_failed_write_leaves_nothing(nodules: NoduleSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"datalist\.json: cannot be written"):
        write_datalist(build_datalist(nodules), tmp_path / "file" / "datalist.json")
    target = tmp_path / "datalist.json"
    target.mkdir()
    with pytest.raises(InputError, match=r"datalist\.json: cannot be written"):
        write_datalist(build_datalist(nodules), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "datalist.json", "file"]


def test_summary(nodules: NoduleSet) -> None:
    nodules.skipped += [Skipped("x", "too small"), Skipped("y", "too small")]
    text = summarise(build_datalist(nodules))
    assert "12 image-prompt pairs" in text
    assert "prompts: 1 different, 0 of them once only" in text
    assert "2 x too small" in text


def test_ensure_makes_it_once(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "datalist.json"
    assert ensure_datalist(path, folder) == path
    before = path.stat().st_mtime_ns
    ensure_datalist(path, folder)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=f"made from {folder}, not from {tmp_path}"):
        ensure_datalist(path, tmp_path)
    with pytest.raises(InputError, match=f"made from {folder}, not from phantom"):
        ensure_datalist(path, "phantom")


def test_real_crops_are_split_as_the_reference_does(real_crops: NoduleSet) -> None:
    content = build_datalist(real_crops)
    assert [len(content[split]) for split in SPLITS] == [587, 167, 84]
    patients = [{item["patient_id"] for item in content[split]} for split in SPLITS]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 472
    shares = [sum(i["findings"]["malignancy"] > 3 for i in content[split]) / len(content[split]) for split in SPLITS]
    assert shares == pytest.approx([206 / 838] * 3, abs=0.01)
    padded = sum(item["padding"] > 0 for split in SPLITS for item in content[split])
    assert padded < 0.12 * 838
