from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from ct_hosts import FINDINGS
from warm import run_python

from nodule_plugin.cli import main
from nodule_plugin.cli.options import monai_arguments
from nodule_plugin.errors import InputError


def test_a_command_line_puts_a_nodule_in(host: Path, crops: Path, repository: Path, tmp_path: Path) -> None:
    settings = {
        "overlay": "copy_paste",
        "crops": crops,
        "series": host,
        "position": "-30,12,2",
        "diameter_mm": 9.5,
        "findings": FINDINGS,
        "seeds": "4,7",
        "output_dir": tmp_path / "out",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "nodule_plugin.cli", "insert", *words]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = run_python(command, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [series["seed"] for series in manifest["series"]] == [4, 7]
    assert manifest["series"][0]["nodules"][0]["position_mm"] == [-30, 12, 2]
    again = run_python(command, tmp_path, environment)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("error: ")
    assert "already there" in again.stderr.splitlines()[-1]


def test_negative_coordinates_are_values() -> None:
    words = monai_arguments("insert", ["--position", "-1.5,2,-3", "--seeds", "0"])
    assert words[3:] == ["--position=-1.5,2,-3", "--seeds=0"]


def test_extract_says_what_is_missing(host: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: cannot be read \(No such file or directory\); give the path of a"):
        main(["extract", "--dataset-dir", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "out")])
    with pytest.raises(InputError, match="CT series is annotated"):
        main(["extract", "--dataset-dir", str(host), "--output-dir", str(tmp_path / "out")])
