"""prepare.json as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from crops_folder import write_crops
from dicom_files import SQUARE, nodule_xml, write_message, write_series
from monai.bundle import run

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.errors import InputError, find_input_error


def _prepare(repository: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += [str(repository / "bundle" / "configs" / "prepare.json"), "--bundle_root", str(repository / "bundle")]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    return subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def _prepare_here(repository: Path, **settings: Any) -> None:
    """The same without the seconds that another process takes to import MONAI."""
    run(
        config_file=str(repository / "bundle" / "configs" / "prepare.json"),
        bundle_root=str(repository / "bundle"),
        **settings,
    )


def test_crops_from_any_folder(repository: Path, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", count=12)
    datalist = tmp_path / "out" / "datalist.json"
    options = ["--template", "detailed", "--split_ratios", "[2, 1, 1]", "--min_diameter_mm", "5"]
    done = _prepare(repository, tmp_path, "--dataset_dir", "crops", "--datalist", str(datalist), *options)
    assert done.returncode == 0, done.stderr
    assert "12 image-prompt pairs" in done.stdout
    content = json.loads(datalist.read_text())
    assert [content[f"num{part}"] for part in ("Training", "Validation", "Test")] == [6, 3, 3]
    assert content["dataset_dir"] == str(tmp_path / "crops")
    assert content["template"]["name"] == "detailed"
    assert content["selection"] == {"min_readers": 1, "min_diameter_mm": 5.0}
    page = datalist.with_suffix(".html")
    assert f"page: {page}" in done.stdout
    assert "12 pairs: 6 for training, 3 for validation, 3 for test." in page.read_text(encoding="utf-8")


def test_series_by_the_readers_xml(repository: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "tree", [0.0, 2.5, 5.0])
    write_message(tmp_path / "tree" / "reading.xml", [nodule_xml([(2.5, SQUARE)], margin=m) for m in (1, 4)])
    datalist = tmp_path / "datalist.json"
    _prepare_here(repository, dataset_dir=str(tmp_path / "tree"), datalist=str(datalist), consensus="mean")
    [item] = json.loads(datalist.read_text())["training"]
    assert (item["id"], item["slice_index"], item["findings"]["margin"]) == ("TEST-0001-N01", None, 3)


@pytest.mark.parametrize("dataset", ["lidc_idri", "lidc_nodule_crops"])
def test_real_data(repository: Path, real_data: Path, tmp_path: Path, dataset: str) -> None:
    datalist = tmp_path / "datalist.json"
    _prepare_here(repository, dataset_dir=str(real_data / dataset), datalist=str(datalist))
    content = json.loads(datalist.read_text())
    counts = [content[f"num{part}"] for part in ("Training", "Validation", "Test")]
    assert sum(counts) == {"lidc_idri": 5, "lidc_nodule_crops": 838}[dataset]
    for part in ("training", "validation", "test"):
        assert len(load_datalist(datalist, part)) == len(content[part])
    page = datalist.with_suffix(".html").read_text(encoding="utf-8")
    assert page.count("<figure><img") == {"lidc_idri": 5, "lidc_nodule_crops": 18}[dataset]
    assert "Made from real patients" in page


def test_page_of_phantoms_under_a_name_of_its_own(repository: Path, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", count=3)
    (tmp_path / "crops" / "dataset.json").write_text('{"source": "phantom", "synthetic": true}')
    settings = {"datalist": str(tmp_path / "list.json"), "page": str(tmp_path / "look.html")}
    _prepare_here(repository, dataset_dir=str(tmp_path / "crops"), **settings)
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert "Synthetic CT (phantoms)" in page
    assert "Made from real patients" not in page
    assert not (tmp_path / "list.html").exists()


@pytest.mark.parametrize("off", [False, "false"])
def test_no_page_where_none_is_wanted(repository: Path, tmp_path: Path, off: Any) -> None:
    write_crops(tmp_path / "crops", count=3)
    _prepare_here(repository, dataset_dir=str(tmp_path / "crops"), datalist=str(tmp_path / "list.json"), page=off)
    assert {path.name for path in tmp_path.iterdir()} == {"crops", "list.json"}


def test_the_data_list_outlives_a_failure_of_its_page(repository: Path, tmp_path: Path) -> None:
    slices = write_series(tmp_path / "tree", [0.0, 2.5, 5.0])
    write_message(tmp_path / "tree" / "reading.xml", [nodule_xml([(2.5, SQUARE)])])
    instance = pydicom.dcmread(slices[1])
    instance.PixelData = instance.PixelData[: len(instance.PixelData) // 2]  # the file is whole, its image is not
    instance.save_as(slices[1])
    datalist = tmp_path / "list.json"
    with pytest.raises((InputError, RuntimeError)) as caught:
        _prepare_here(repository, dataset_dir=str(tmp_path / "tree"), datalist=str(datalist))
    page = tmp_path / "list.html"
    expected = f"page {page}: not written; the data list {datalist} stands: image: {slices[1]}"
    assert str(find_input_error(caught.value)).startswith(expected)
    assert len(json.loads(datalist.read_text())["training"]) == 1
    assert not page.exists()


def test_what_is_wrong_is_said_in_a_line(repository: Path, tmp_path: Path) -> None:
    broken = write_series(tmp_path / "tree", [0.0, 2.5])[1]
    os.truncate(broken, 800)
    done = _prepare(repository, tmp_path, "--dataset_dir", "tree", "--datalist", str(tmp_path / "out" / "list.json"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {broken}: truncated:")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_dir": "absent"}, "dataset_dir: there is no absent;"),
        ({"dataset_dir": "empty"}, "dataset_dir: empty is empty;"),
        ({"selection": "best"}, "selection: there is no 'best';"),
        ({"min_readers": -1}, "min_readers: a number of 0 or more is needed, not -1"),
        ({"template": "haiku"}, "prompt template: there is no 'haiku';"),
        ({"split_ratios": [7, 2]}, "split ratios: three whole numbers are needed"),
        ({"page": "page.pdf"}, "page: true, false or a name that ends in .html is needed"),
        ({"page_samples": -1}, "page_samples: a whole number of 0 or above is needed"),
        ({"dataset_dir": "bad"}, "nodules.csv: line 2: spiculation:"),
        ({"dataset_dir": "lacking"}, "nodules.csv: the column 'margin' is missing;"),
    ],
)
def test_error_leaves_no_file(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_crops(tmp_path / "crops")
    write_crops(tmp_path / "bad", spiculation="7")
    write_crops(tmp_path / "lacking", margin=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises((InputError, RuntimeError)) as caught:
        _prepare_here(
            repository, **{"dataset_dir": "crops", "datalist": str(tmp_path / "out" / "list.json")} | settings
        )
    assert message in str(find_input_error(caught.value))
    assert not (tmp_path / "out").exists()
