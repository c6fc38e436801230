"""prepare.json as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
from crops_folder import write_crops
from dicom_files import SQUARE, nodule_xml, write_message, write_series
from monai.bundle import run
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from warm import WarmProcess, run_python

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.errors import InputError, find_input_error
from nodule_plugin.lidc.phantom import write_phantom_series

FAR = [(13, 13), (13, 15), (15, 15), (15, 13)]


def _command(repository: Path, *arguments: str) -> dict[str, Any]:
    """The command line and its environment."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += [str(repository / "bundle" / "configs" / "prepare.json"), "--bundle_root", str(repository / "bundle")]
    return {"args": [*command, *arguments], "env": os.environ | {"PYTHONPATH": str(repository)}}


def _prepare(repository: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = _command(repository, *arguments)
    return run_python(command["args"], cwd, command["env"])


def _prepare_here(repository: Path, **settings: Any) -> None:
    """The same in this process, without the page unless it is asked for."""
    run(
        config_file=str(repository / "bundle" / "configs" / "prepare.json"),
        bundle_root=str(repository / "bundle"),
        **{"page": False, **settings},
    )


def test_crops_from_any_folder(repository: Path, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", count=12)
    datalist = tmp_path / "out" / "datalist.json"
    options = ["--template", "detailed", "--split_ratios", "[2, 1, 1]", "--min_diameter_mm", "5"]
    done = _prepare(repository, tmp_path, "--dataset_dir", "crops", "--datalist", str(datalist), *options)
    assert done.returncode == 0, done.stderr
    assert "12 image-prompt pairs" in done.stdout
    content = json.loads(datalist.read_text())
    assert [content[f"num{split}"] for split in ("Training", "Validation", "Test")] == [6, 3, 3]
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
    _prepare_here(repository, dataset_dir=str(real_data / dataset), datalist=str(datalist), page=True)
    content = json.loads(datalist.read_text())
    counts = [content[f"num{split}"] for split in ("Training", "Validation", "Test")]
    assert sum(counts) == {"lidc_idri": 5, "lidc_nodule_crops": 838}[dataset]
    for split in ("training", "validation", "test"):
        assert len(load_datalist(datalist, split)) == len(content[split])
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
    instance.file_meta.TransferSyntaxUID = JPEG2000Lossless
    instance.PixelData = encapsulate([b"no codestream "])  # the file is whole, its image is not
    instance.save_as(slices[1])
    datalist = tmp_path / "list.json"
    with pytest.raises((InputError, RuntimeError)) as caught:
        _prepare_here(repository, dataset_dir=str(tmp_path / "tree"), datalist=str(datalist), page=True)
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
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["list.json.headers.jsonl"]


def test_phantom_series_are_ingested_as_lidc_idri_is(repository: Path, tmp_path: Path) -> None:
    tree, datalist = tmp_path / "ct", tmp_path / "list.json"
    write_phantom_series(tree, 2, margin_slices=0)
    _prepare_here(repository, dataset_dir=str(tree), datalist=str(datalist), split_ratios=[1, 1, 0], num_workers=2)
    content = json.loads(datalist.read_text())
    assert (content["source"], content["synthetic"]) == ("phantom", True)
    items = [*content["training"], *content["validation"]]
    assert {item["patient_id"] for item in items} == {"PHANTOM-0001", "PHANTOM-0002"}
    for item in items:
        dataset = pydicom.dcmread(tree / item["image"], stop_before_pixels=True)
        assert (dataset.SyntheticData, dataset.PatientID) == ("YES", item["patient_id"])


@pytest.mark.parametrize("backend", ["processes", "dask"])
def test_workers(repository: Path, tmp_path: Path, backend: str) -> None:
    write_series(tmp_path / "tree", [0.0, 2.5, 5.0])
    write_message(tmp_path / "tree" / "reading.xml", [nodule_xml([(2.5, SQUARE)])])
    lists = [tmp_path / "alone.json", tmp_path / "together.json"]
    for datalist, settings in zip(lists, ({}, {"num_workers": 2, "parallel": backend})):
        _prepare_here(repository, dataset_dir=str(tmp_path / "tree"), datalist=str(datalist), **settings)
    assert lists[0].read_text() == lists[1].read_text()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough files to be interrupted in the middle."""
    folder = tmp_path_factory.mktemp("many")
    write_series(folder, [2.5 * number for number in range(3)])
    content = (folder / "000003.dcm").read_bytes()
    for number in range(2500):
        (folder / f"copy {number}.dcm").write_bytes(content)
    write_message(folder / "reading.xml", [nodule_xml([(2.5, SQUARE)])])
    return folder


@pytest.fixture
def slow_disk(tmp_path: Path) -> list[str]:
    """MONAI's command where every header takes four milliseconds, so that there is time to interrupt."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import runpy, time, pydicom\n"
        "read = pydicom.dcmread\n"
        "pydicom.dcmread = lambda *given, **named: (time.sleep(0.004), read(*given, **named))[1]\n"
        "runpy.run_module('monai.bundle', run_name='__main__')\n"
    )
    return [sys.executable, str(program)]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_was(
    repository: Path,
    tmp_path: Path,
    many: Path,
    slow_disk: list[str],
    capfd: pytest.CaptureFixture[str],
    sent: signal.Signals,
) -> None:
    datalist = tmp_path / "out" / "list.json"
    kept = tmp_path / "out" / "list.json.headers.jsonl"
    command = _command(repository, "--dataset_dir", str(many), "--datalist", str(datalist))
    process = WarmProcess([*slow_disk, *command["args"][3:]], tmp_path, command["env"])
    while process.poll() is None and _lines(kept) < 3:
        time.sleep(0.002)
    process.send_signal(sent)
    ended = process.finish(60)
    assert ended.returncode != 0
    if sent == signal.SIGINT:
        assert ended.stderr.endswith("\ninterrupted\n")
        assert "Traceback" not in ended.stderr
    assert 3 <= _lines(kept) < 20  # of 41
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]

    before = _lines(kept)
    capfd.readouterr()
    _prepare_here(repository, dataset_dir=str(many), datalist=str(datalist))
    assert f"0/{2503 - 64 * (before - 1)} " in capfd.readouterr().err  # the progress bar's own account
    assert datalist.exists()
    assert not list(kept.parent.glob(".*"))
    _prepare_here(repository, dataset_dir=str(many), datalist=str(tmp_path / "whole.json"))
    assert datalist.read_text() == (tmp_path / "whole.json").read_text()


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_a_full_disk(repository: Path, full_disk: Path, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", count=12)
    datalist = full_disk / "out" / "list.json"
    with pytest.raises(RuntimeError) as caught:
        _prepare_here(repository, dataset_dir=str(crops), datalist=str(datalist))
    assert (
        f"{datalist}: cannot be written (No space left on device); give another path as datalist, or make room"
        in str(find_input_error(caught.value))
    )
    assert list(datalist.parent.iterdir()) == []
    (full_disk / "other").unlink()
    _prepare_here(repository, dataset_dir=str(crops), datalist=str(datalist))
    assert json.loads(datalist.read_text())["numTraining"] > 0


def test_files_that_may_not_grow(repository: Path, tmp_path: Path) -> None:
    """What a quota does in the middle of reading headers."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    write_series(tree, [2.5 * number for number in range(100)])
    write_message(tree / "reading.xml", [nodule_xml([(2.5, SQUARE)])])
    limited = tmp_path / "limited.py"  # less than the headers take, more than the process says
    limited.write_text(
        "import resource, runpy\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)\n"
    )
    words = _command(repository, "--dataset_dir", str(tree), "--datalist", str(out / "list.json"))
    done = run_python([sys.executable, str(limited), *words["args"][3:]], tmp_path, words["env"])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {out}/list.json.headers.jsonl: cannot be written (File too large); give another folder for it,"
        " or make room"
    )
    assert [path.name for path in out.iterdir()] == ["list.json.headers.jsonl"]
    _prepare_here(repository, dataset_dir=str(tree), datalist=str(out / "list.json"))
    assert json.loads((out / "list.json").read_text())["numTraining"] == 1


@pytest.mark.parametrize("kind", ["crops", "tree"])
def test_a_read_only_output_folder(repository: Path, read_only_folder: Path, tmp_path: Path, kind: str) -> None:
    write_crops(tmp_path / "crops")
    write_series(tmp_path / "tree", [0.0])
    datalist = read_only_folder / "out" / "list.json"
    with pytest.raises(RuntimeError) as caught:
        _prepare_here(repository, dataset_dir=str(tmp_path / kind), datalist=str(datalist))
    message = str(find_input_error(caught.value))
    assert message.startswith(str(datalist))
    assert "cannot be written (Read-only file system); give another" in message or "Permission denied" in message


def test_a_read_only_dataset_folder(repository: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_series(tree, [0.0, 2.5])
    write_message(tree / "reading.xml", [nodule_xml([(2.5, SQUARE)])])
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tree.iterdir())
    _prepare_here(repository, dataset_dir=str(tree), datalist=str(tmp_path / "out" / "list.json"))
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tree.iterdir()) == before


def test_a_slice_that_is_missing_at_a_nodule(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_series(tmp_path / "tree", [0.0, 2.5, 5.0, 7.5])
    write_message(tmp_path / "tree" / "reading.xml", [nodule_xml([(2.5, SQUARE)]), nodule_xml([(7.5, FAR)])])
    files[1].unlink()
    datalist = tmp_path / "list.json"
    _prepare_here(repository, dataset_dir=str(tmp_path / "tree"), datalist=str(datalist))
    content = json.loads(datalist.read_text())
    reason = "its centre slice at z = 2.5 mm is missing; the nearest is 2.5 mm away"
    assert content["skipped"] == [{"what": "TEST-0001-N01", "reason": reason}]
    assert [item["id"] for item in content["training"]] == ["TEST-0001-N02"]
    assert f"1 x {reason}" in capsys.readouterr().out


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
        ({"dataset_dir": "tree", "parallel": "threads"}, "parallel: there is no 'threads'; choose one of"),
        ({"dataset_dir": "tree", "num_workers": 0}, "num_workers: 1 or more is needed, or -1 for one for each"),
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
    write_series(tmp_path / "tree", [0.0])
    (tmp_path / "empty").mkdir()
    with pytest.raises((InputError, RuntimeError)) as caught:
        _prepare_here(
            repository, **{"dataset_dir": "crops", "datalist": str(tmp_path / "out" / "list.json")} | settings
        )
    assert message in str(find_input_error(caught.value))
    assert not (tmp_path / "out").exists()
