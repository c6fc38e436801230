"""prepare.json as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.crops_folder import write_crops
from tests.lidc.dicom_files import SQUARE, nodule_xml, write_message, write_series


def _prepare(repository: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += [str(repository / "bundle" / "configs" / "prepare.json"), "--bundle_root", str(repository / "bundle")]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    return subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


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


def test_series_by_the_readers_xml(repository: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "tree", [0.0, 2.5, 5.0])
    write_message(tmp_path / "tree" / "reading.xml", [nodule_xml([(2.5, SQUARE)], margin=m) for m in (1, 4)])
    datalist = tmp_path / "datalist.json"
    arguments = ["--dataset_dir", str(tmp_path / "tree"), "--datalist", str(datalist), "--consensus", "mean"]
    done = _prepare(repository, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    [item] = json.loads(datalist.read_text())["training"]
    assert (item["id"], item["slice_index"], item["findings"]["margin"]) == ("TEST-0001-N01", None, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset_dir", "absent"], "error: dataset_dir: there is no absent;"),
        (["--dataset_dir", "crops", "--selection", "best"], "error: selection: there is no 'best';"),
        (["--dataset_dir", "crops", "--template", "haiku"], "error: prompt template: there is no 'haiku';"),
        (["--dataset_dir", "tree"], "error: {tree}/000010.dcm: truncated:"),
        (["--dataset_dir", "bad"], "error: {bad}/nodules.csv: line 2: spiculation:"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(repository: Path, tmp_path: Path, options: list[str], message: str) -> None:
    write_crops(tmp_path / "crops")
    write_crops(tmp_path / "bad", spiculation="7")
    os.truncate(write_series(tmp_path / "tree", [0.0, 2.5])[1], 800)
    done = _prepare(repository, tmp_path, *options, "--datalist", str(tmp_path / "out" / "datalist.json"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(message.format(tree=tmp_path / "tree", bad=tmp_path / "bad"))
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
