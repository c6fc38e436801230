from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nodule_plugin.lidc import series as module
from nodule_plugin.lidc.series import contains_dicom, index_series
from tests.lidc.dicom_files import SERIES_UID, write_message, write_series, write_slice


def test_finds_series_by_header_wherever_they_lie(tmp_path: Path) -> None:
    files = write_series(tmp_path / "a" / "b", [0.0, 2.5, 5.0])
    write_slice(tmp_path / "elsewhere" / "no_suffix", 1.0, SeriesInstanceUID="2.25.7")
    write_slice(tmp_path / "dx.dcm", 0, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", Modality="DX")
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "a" / "._000003.dcm").write_bytes(b"a file manager's")
    message = write_message(tmp_path / "a" / "1.xml", [])
    index = index_series(tmp_path)
    assert list(index.series) == [SERIES_UID, "2.25.7"]
    assert [item.path for item in index.series[SERIES_UID].slices] == files
    assert index.series[SERIES_UID].slice_z == (0.0, 2.5, 5.0)
    assert index.xml_files == (message,)
    assert not index.broken


@pytest.mark.parametrize(("z", "expected", "distance"), [(2.6, 2.5, 0.1), (1.25, 0.0, 1.25), (99.0, 5.0, 94.0)])
def test_nearest(tmp_path: Path, z: float, expected: float, distance: float) -> None:
    write_series(tmp_path, [5.0, 0.0, 2.5])
    found, away = index_series(tmp_path).series[SERIES_UID].nearest(z)
    assert found.header.z == expected
    assert away == pytest.approx(distance)


def test_slice_distance_is_not_the_thickness_and_stands_a_gap(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 1.25, 2.5, 12.5], SliceThickness=2.5)
    assert index_series(tmp_path).series[SERIES_UID].slice_distance == 1.25


def test_one_slice_has_its_thickness_as_distance(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0], SliceThickness=2.5)
    assert index_series(tmp_path).series[SERIES_UID].slice_distance == 2.5


def test_of_duplicates_the_lowest_instance_number_is_kept(tmp_path: Path) -> None:
    late = write_slice(tmp_path / "a.dcm", 2.5, InstanceNumber=9)
    early = write_slice(tmp_path / "b.dcm", 2.5000001, InstanceNumber=2)
    copy = Path(shutil.copy(early, tmp_path / "c.dcm"))
    series = index_series(tmp_path).series[SERIES_UID]
    assert [item.path for item in series.slices] == [early]
    assert set(series.duplicates) == {late, copy}


def test_broken_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    files = write_series(tmp_path, [0.0, 2.5, 5.0])
    os.truncate(files[1], 900)
    index = index_series(tmp_path, tmp_path / "index.json")
    assert list(index.broken) == [files[1]]
    assert "truncated" in index.broken[files[1]]
    assert index.series[SERIES_UID].slice_z == (0.0, 5.0)
    assert not (tmp_path / "index.json").exists()


def test_index_spares_reading_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, kept = tmp_path / "data", tmp_path / "out" / "index.json"
    files = write_series(data, [0.0, 2.5])
    first = index_series(data, kept)
    read: list[Path] = []

    def counting(path: Path) -> object:
        read.append(path)
        return original(path)

    original = module.read_slice_header
    monkeypatch.setattr(module, "read_slice_header", counting)
    assert index_series(data, kept) == first
    assert read == []
    write_slice(files[0], 7.5)
    assert index_series(data, kept).series[SERIES_UID].slice_z == (2.5, 7.5)
    assert read == [files[0]]
    assert [path.name for path in kept.parent.iterdir()] == ["index.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0}', '{"version": 1, "root": "/other"}'])
def test_useless_index_is_made_anew(tmp_path: Path, content: str) -> None:
    data, kept = tmp_path / "data", tmp_path / "index.json"
    write_series(data, [0.0, 2.5])
    kept.write_text(content)
    assert index_series(data, kept).series[SERIES_UID].slice_z == (0.0, 2.5)
    assert len(kept.read_text()) > 100


def test_several_processes_give_the_same(tmp_path: Path) -> None:
    write_series(tmp_path, [float(z) for z in range(70)])
    assert index_series(tmp_path, num_workers=2) == index_series(tmp_path)


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    write_series(tmp_path / "store", [0.0, 2.5])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "patient").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "up").symlink_to(tmp_path / "root")
    index = index_series(tmp_path / "root")
    assert index.series[SERIES_UID].slice_z == (0.0, 2.5)
    assert not index.series[SERIES_UID].duplicates


def test_contains_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    assert not contains_dicom(tmp_path)
    write_slice(tmp_path / "deep" / "down" / "no_suffix", 0)
    assert contains_dicom(tmp_path)
