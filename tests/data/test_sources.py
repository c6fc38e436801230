from __future__ import annotations

import json
from pathlib import Path

import pytest
from crops_folder import write_crops
from dicom_files import SQUARE, nodule_xml, write_message, write_series

from nodule_plugin.data.sources import load_nodules, make_phantoms
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.selection import Selection


def _tree(folder: Path) -> Path:
    write_series(folder, [0.0, 2.5, 5.0])
    write_message(folder / "reading.xml", [nodule_xml([(2.5, SQUARE)])])
    return folder


def test_crops_are_recognised(tmp_path: Path) -> None:
    assert load_nodules(write_crops(tmp_path)).source == "crops"


def test_series_are_recognised(tmp_path: Path) -> None:
    found = load_nodules(_tree(tmp_path / "deep" / "down").parents[0], consensus="mode")
    assert (found.source, found.consensus) == ("lidc-idri", "mode")


def test_source_can_be_said(tmp_path: Path) -> None:
    write_crops(_tree(tmp_path))
    assert load_nodules(tmp_path).source == "crops"
    assert load_nodules(tmp_path, source="lidc-idri").source == "lidc-idri"


def test_index_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    load_nodules(_tree(tmp_path / "data"), index_file=tmp_path / "index.json")
    assert (tmp_path / "index.json").is_file()
    assert sorted(path.suffix for path in (tmp_path / "data").iterdir()) == [".dcm", ".dcm", ".dcm", ".xml"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset_dir: there is no .*absent"):
        load_nodules(tmp_path / "absent")


@pytest.mark.parametrize("leaving", [None, ".DS_Store", "._nodules.csv"])
def test_empty_folder(tmp_path: Path, leaving: str | None) -> None:
    if leaving:
        (tmp_path / leaving).touch()
    with pytest.raises(InputError, match=r"dataset_dir: .* is empty"):
        load_nodules(tmp_path)


def test_neither(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(InputError, match=r"holds neither nodules\.csv nor, at any depth, a DICOM file"):
        load_nodules(tmp_path)
    with pytest.raises(InputError, match="is a file; give the folder it lies in"):
        load_nodules(tmp_path / "a.txt")


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="source: there is no 'zip'"):
        load_nodules(tmp_path, source="zip")


def test_nothing_left(tmp_path: Path) -> None:
    write_crops(tmp_path, count=3)
    with pytest.raises(InputError, match=r"no nodule is left \(3 skipped: readers below 4\)"):
        load_nodules(tmp_path, selection=Selection(min_readers=4))
    with pytest.raises(InputError, match="no nodule is left"):
        load_nodules(write_crops(tmp_path / "none", count=0))


def test_consensus_is_not_for_crops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"consensus: .* holds one consensus for each nodule; leave 'mean' out"):
        load_nodules(write_crops(tmp_path), consensus="mean")


def test_phantoms_are_made_once(tmp_path: Path) -> None:
    phantoms = tmp_path / "out" / "phantom"
    found = load_nodules("phantom", phantom_dir=phantoms, phantom_nodules=2, phantom_seed=3)
    assert (found.source, found.root, len(found.nodules)) == ("phantom", phantoms, 2)
    assert all(nodule.synthetic for nodule in found.nodules)
    before = (phantoms / "nodules.csv").stat().st_mtime_ns
    assert load_nodules("phantom", phantom_dir=phantoms, phantom_nodules=2, phantom_seed=3) == found
    assert (phantoms / "nodules.csv").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"made with .*'nodules': 2.*, wanted is .*'nodules': 5"):
        load_nodules("phantom", phantom_dir=phantoms, phantom_nodules=5, phantom_seed=3)


def test_phantoms_do_not_overwrite(tmp_path: Path) -> None:
    write_crops(tmp_path)
    with pytest.raises(InputError, match="not a folder of phantoms"):
        make_phantoms(tmp_path, 2, 0)
    (tmp_path / "dataset.json").write_text(json.dumps({"source": "crops"}))
    with pytest.raises(InputError, match="not a folder of phantoms"):
        make_phantoms(tmp_path, 2, 0)
