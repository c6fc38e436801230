from __future__ import annotations

import json
import os
import resource
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import SERIES_UID, write_message, write_series, write_slice
from permissions import unprivileged
from tqdm import tqdm

from nodule_plugin.errors import InputError
from nodule_plugin.lidc import series as module
from nodule_plugin.lidc.dicom_header import SliceHeader
from nodule_plugin.lidc.series import contains_dicom, index_series


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
    index = index_series(tmp_path)
    assert list(index.broken) == [files[1]]
    assert "truncated" in index.broken[files[1]]
    assert index.series[SERIES_UID].slice_z == (0.0, 5.0)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose headers have been read, in order."""
    files: list[Path] = []

    def recording(path: Path) -> SliceHeader | None:
        files.append(path)
        return original(path)

    original = module.read_slice_header
    monkeypatch.setattr(module, "read_slice_header", recording)
    return files


def test_index_spares_reading_again(tmp_path: Path, read: list[Path]) -> None:
    data, kept = tmp_path / "data", tmp_path / "out" / "index.jsonl"
    files = write_series(data, [0.0, 2.5])
    (data / "notes.txt").write_text("words")
    first = index_series(data, kept)
    read.clear()
    assert index_series(data, kept) == first
    assert read == []
    write_slice(files[0], 7.5)
    assert index_series(data, kept).series[SERIES_UID].slice_z == (2.5, 7.5)
    assert read == [files[0]]
    assert [path.name for path in kept.parent.iterdir()] == ["index.jsonl"]


def test_what_was_read_beside_a_broken_file_is_kept_and_that_file_is_read_again(
    tmp_path: Path, read: list[Path]
) -> None:
    data, kept = tmp_path / "data", tmp_path / "index.jsonl"
    files = write_series(data, [0.0, 2.5, 5.0])
    os.truncate(files[1], 900)
    first = index_series(data, kept)
    read.clear()
    assert index_series(data, kept) == first
    assert read == [files[1]]


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, kept = tmp_path / "data", tmp_path / "index.jsonl"
    write_series(data, [float(z) for z in range(10)])
    monkeypatch.setattr(module, "_BATCH", 2)
    counting = module.read_slice_header

    def interrupted(path: Path) -> SliceHeader | None:
        if len(read) == 7:
            raise KeyboardInterrupt
        return counting(path)

    monkeypatch.setattr(module, "read_slice_header", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_series(data, kept)
    done = set(read[:6])  # three whole batches
    monkeypatch.setattr(module, "read_slice_header", counting)
    read.clear()
    assert index_series(data, kept) == index_series(data)
    assert len(read) == 4 + 10
    assert not done & set(read[:4])


@pytest.mark.parametrize(("torn", "lost"), [(1, 0), (40, 1)])
def test_of_a_line_that_was_cut_only_its_files_are_read_again(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch, torn: int, lost: int
) -> None:
    data, kept = tmp_path / "data", tmp_path / "index.jsonl"
    write_series(data, [float(z) for z in range(5)])
    monkeypatch.setattr(module, "_BATCH", 2)
    index_series(data, kept)
    os.truncate(kept, kept.stat().st_size - torn)
    write_slice(data / "new.dcm", 5.0)
    read.clear()
    whole = index_series(data, kept)
    assert whole.series[SERIES_UID].slice_z == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert len(read) == 1 + lost
    read.clear()
    assert index_series(data, kept) == whole
    assert read == []


def test_what_is_gone_or_changed_does_not_pile_up(tmp_path: Path) -> None:
    data, kept = tmp_path / "data", tmp_path / "index.jsonl"
    files = write_series(data, [0.0, 2.5, 5.0])
    index_series(data, kept)
    files[0].unlink()
    write_slice(files[1], 7.5)
    index_series(data, kept)
    fresh = tmp_path / "fresh.jsonl"
    index_series(data, fresh)
    assert sum(map(len, _names(kept))) == sum(map(len, _names(fresh))) == 2


def _names(kept: Path) -> list[list[str]]:
    _, *lines = kept.read_text().splitlines()
    return [[file[0] for file in json.loads(line)["files"]] for line in lines]


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", '{"version": 0}', '{"version": 2, "root": "/other"}'])
def test_useless_index_is_made_anew(tmp_path: Path, content: str) -> None:
    data, kept = tmp_path / "data", tmp_path / "index.jsonl"
    write_series(data, [0.0, 2.5])
    kept.write_text(content, encoding="latin-1")
    assert index_series(data, kept).series[SERIES_UID].slice_z == (0.0, 2.5)
    assert sum(map(len, _names(kept))) == 2


def test_a_full_disk_leaves_whole_lines_and_the_next_run_goes_on(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, kept = tmp_path / "data", tmp_path / "index.jsonl"
    write_series(data, [float(z) for z in range(10)])
    monkeypatch.setattr(module, "_BATCH", 2)
    monkeypatch.setattr(module, "tqdm", partial(tqdm, disable=True))  # the limit is on what is printed, too
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # the third line does not fit
    try:
        with pytest.raises(InputError, match=rf"{kept}: cannot be written \(File too large\); .* or make room"):
            index_series(data, kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept.read_text().endswith("\n")
    names = _names(kept)
    assert 0 < sum(map(len, names)) < 10
    read.clear()
    index_series(data, kept)
    assert len(read) == 10 - sum(map(len, names))


def test_an_index_that_cannot_be_written_is_known_before_a_header_is_read(tmp_path: Path, read: list[Path]) -> None:
    write_series(tmp_path / "data", [0.0])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        index_series(tmp_path / "data", tmp_path / "file" / "index.jsonl")
    assert read == []


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


def test_a_folder_that_cannot_be_read_is_named(public_folder: Path) -> None:
    write_series(public_folder / "a", [0.0])
    write_series(public_folder / "b", [2.5])
    (public_folder / "b").chmod(0)
    with unprivileged():
        index = index_series(public_folder)
    assert index.broken == {public_folder / "b": "cannot be read (Permission denied); change its permissions"}
    assert index.series[SERIES_UID].slice_z == (0.0,)


def test_a_file_that_cannot_be_read_is_named(public_folder: Path) -> None:
    [file] = write_series(public_folder, [0.0])
    file.chmod(0)
    with unprivileged():
        assert "cannot be read (Permission denied)" in index_series(public_folder).broken[file]


def test_pipes_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path / ".part-of-a-copy", [0.0])
    os.mkfifo(tmp_path / "1.dcm")  # reading it would wait for ever
    assert not contains_dicom(tmp_path)
    write_series(tmp_path / "a", [2.5])
    index = index_series(tmp_path)
    assert index.series[SERIES_UID].slice_z == (2.5,)
    assert not index.broken


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0])
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    assert "cannot be read (No such file or directory)" in index_series(tmp_path).broken[tmp_path / "gone.dcm"]


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PatientID": "TEST-0002"}, "its PatientID is TEST-0002, that of its series' other files TEST-0001; correct"),
        ({"StudyInstanceUID": "2.25.9"}, "its StudyInstanceUID is 2.25.9, that of its series' other files 2.25.1000"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.97, 0.243]}, "not parallel to its series' other slices"),
    ],
)
def test_a_file_that_does_not_fit_into_its_series_is_broken(
    tmp_path: Path, elements: dict[str, Any], reason: str
) -> None:
    odd = write_slice(tmp_path / "0.dcm", 7.5, **elements)
    write_series(tmp_path, [0.0, 2.5, 5.0])
    index = index_series(tmp_path)
    assert list(index.broken) == [odd]
    assert index.broken[odd].startswith(reason)
    assert index.series[SERIES_UID].slice_z == (0.0, 2.5, 5.0)


def test_rounded_cosines_are_parallel(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", 7.5, ImageOrientationPatient=[1, 0, 0, 0, 0.999998, 0.002])
    write_series(tmp_path, [0.0, 2.5, 5.0])
    index = index_series(tmp_path)
    assert not index.broken
    assert index.series[SERIES_UID].slice_z == (0.0, 2.5, 5.0, 7.5)


@pytest.mark.parametrize("along_normal", [False, True], ids=["table moves along z", "table moves along the normal"])
@pytest.mark.parametrize("degrees", [-20, 5, 20])
def test_slices_of_a_tilted_series_are_ordered_along_their_normal(
    tmp_path: Path, degrees: float, along_normal: bool
) -> None:
    tilt = np.deg2rad(degrees)
    normal = np.array([0, np.sin(tilt), np.cos(tilt)])
    step = 2.5 * normal if along_normal else np.array([0, 0, 2.5])
    for number in range(4):
        position = np.array([-10, -20, 100]) + number * step
        write_slice(
            tmp_path / f"{9 - number}.dcm",
            float(position[2]),
            ImagePositionPatient=list(position),
            ImageOrientationPatient=[1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)],
        )
    series = index_series(tmp_path).series[SERIES_UID]
    assert [item.path.name for item in series.slices] == ["9.dcm", "8.dcm", "7.dcm", "6.dcm"]
    assert series.slice_distance == pytest.approx(float(step @ normal))
    found, distance = series.nearest(series.slice_z[2] + 0.5)  # contours know slices by z
    assert found.path.name == "7.dcm"
    assert distance == pytest.approx(0.5 * float(step @ normal) / step[2], rel=1e-5)


def test_instances_with_one_uid_are_told_apart_by_position(tmp_path: Path) -> None:
    for number, z in enumerate([0.0, 0.4]):
        write_slice(tmp_path / f"{number}.dcm", z, SOPInstanceUID="2.25.5")
    series = index_series(tmp_path).series[SERIES_UID]
    assert series.slice_z == (0.0, 0.4)
    assert not series.duplicates


def test_contains_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    assert not contains_dicom(tmp_path)
    write_slice(tmp_path / "deep" / "down" / "no_suffix", 0)
    assert contains_dicom(tmp_path)
