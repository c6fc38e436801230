"""Whole phantom series: what a DICOM reader and the project's own reader of LIDC-IDRI make of them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from warm import run_python

from nodule_plugin.data.lidc_tree import nodules_from_lidc
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.clustering import cluster_annotations
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.phantom import series as series_module
from nodule_plugin.lidc.phantom import write_phantom_series
from nodule_plugin.lidc.phantom.series import choose_scans, trim
from nodule_plugin.lidc.records import Scan
from nodule_plugin.lidc.xml import read_reading


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    return load_scans()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One series, from the command that users run."""
    output = tmp_path_factory.mktemp("series") / "ct"
    command = [sys.executable, "-m", "nodule_plugin.lidc.phantom", "--scans", "1", "--slices", "1", "--seed", "0"]
    done = run_python([*command, "--output", str(output)], output.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"written: {output}"
    return output


@pytest.fixture(scope="module")
def slices(written: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(written.rglob("*.dcm"))]


@pytest.fixture(scope="module")
def source(written: Path, scans: list[Scan]) -> Scan:
    """The real scan behind the series."""
    patient = json.loads((written / "dataset.json").read_text())["series"][0]["annotation_source"]
    return next(scan for scan in choose_scans(scans, 1, 0) if scan.patient_id == patient)


def test_folders_are_named_as_tcia_names_them(written: Path, slices: list[pydicom.Dataset]) -> None:
    first = slices[0]
    folder = written / first.PatientID / first.StudyInstanceUID / first.SeriesInstanceUID
    assert len(list(folder.glob("*.dcm"))) == len(slices)
    assert len(list(folder.glob("*.xml"))) == 1


def test_every_slice_declares_itself_synthetic_and_nobodys(slices: list[pydicom.Dataset], source: Scan) -> None:
    for dataset in slices:
        assert dataset.SyntheticData == "YES"
        assert dataset.PatientID == "PHANTOM-0001"
        assert dataset.ImageType[0] == "DERIVED"
        assert dataset.ContentQualification == "RESEARCH"
        text = str(dataset)
        assert "LIDC-IDRI-" not in text
        assert source.series_instance_uid not in text
        assert source.study_instance_uid not in text
    assert len({dataset.SOPInstanceUID for dataset in slices}) == len(slices)


def test_slices_lie_where_the_real_ones_lay(slices: list[pydicom.Dataset], source: Scan) -> None:
    kept = trim(source, 1)
    assert [float(dataset.ImagePositionPatient[2]) for dataset in slices] == pytest.approx(kept.slice_z)
    for dataset in slices:
        assert (dataset.Rows, dataset.Columns) == (512, 512)
        assert [float(value) for value in dataset.PixelSpacing] == [source.pixel_spacing] * 2
        assert dataset.SliceThickness == source.slice_thickness


def test_a_chest_has_air_lung_soft_tissue_and_bone(slices: list[pydicom.Dataset]) -> None:
    middle = slices[len(slices) // 2]
    hu = middle.pixel_array * float(middle.RescaleSlope) + float(middle.RescaleIntercept)
    shares = {
        "air": (hu < -960).mean(),
        "lung": ((hu > -960) & (hu < -700)).mean(),
        "soft tissue": ((hu > -20) & (hu < 120)).mean(),
        "bone": (hu > 350).mean(),
    }
    assert shares["air"] > 0.25
    assert shares["lung"] > 0.1
    assert shares["soft tissue"] > 0.08
    assert 0.004 < shares["bone"] < 0.1


def test_the_xml_holds_the_readers_own_outlines_and_ratings(written: Path, source: Scan) -> None:
    scan = read_reading(next(written.rglob("*.xml"))).scan
    assert Counter(len(a.contours) for a in scan.annotations) == Counter(len(a.contours) for a in source.annotations)
    given = Counter((tuple(sorted(a.ratings.items())), len(a.contours[0].points)) for a in source.annotations)
    assert Counter((tuple(sorted(a.ratings.items())), len(a.contours[0].points)) for a in scan.annotations) == given


def test_the_reader_of_lidc_finds_every_nodule_and_sees_it(written: Path, source: Scan) -> None:
    found = nodules_from_lidc(written)
    assert len(found.nodules) == len(cluster_annotations(source))
    for nodule in found.nodules:
        assert nodule.synthetic
        assert nodule.patient_id == "PHANTOM-0001"
        dataset = pydicom.dcmread(nodule.image)
        hu = dataset.pixel_array + float(dataset.RescaleIntercept)
        row, column = (round(value) for value in nodule.centre)
        inside = hu[row - 1 : row + 2, column - 1 : column + 2].mean()
        assert inside > -700 if nodule.findings.texture < 4 else inside > -400


OLDER_THAN_THE_ATTRIBUTE = (
    "Error - Attribute with an even group number is not a recognized standard attribute - (0x0008,0x001c)  ? "
)
"""What dciodvfy says of Synthetic Data where its release is older than that attribute (Debian's is of June 2022)."""


def test_slices_pass_dciodvfy(written: Path) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    for path in written.rglob("*.dcm"):
        done = subprocess.run([tool, str(path)], capture_output=True, text=True, check=False)
        assert "CTImage" in done.stderr.splitlines()
        assert {line for line in done.stderr.splitlines() if "Error" in line} <= {OLDER_THAN_THE_ATTRIBUTE}


def test_slices_have_what_the_standard_asks_for_and_nothing_else(slices: list[pydicom.Dataset]) -> None:
    """By the standard's tables of the CT Image IOD, as highdicom ships them; they know Synthetic Data."""
    spec = importlib.util.find_spec("highdicom")
    tables = Path(spec.origin).parent / "_standard" if spec is not None and spec.origin is not None else None
    if tables is None or not (tables / "module_attribute_map.json").is_file():
        pytest.skip("highdicom with its tables of the standard is not installed")
    modules = json.loads((tables / "module_attribute_map.json").read_text())
    uses = json.loads((tables / "iod_module_map.json").read_text())["ct-image"]
    attributes = [
        (use["usage"], attribute["type"], attribute["keyword"])
        for use in uses
        for attribute in modules[use["key"]]
        if not attribute["path"]
    ]
    known = {keyword for _, _, keyword in attributes}
    assert "SyntheticData" in known
    for dataset in slices:
        assert {element.keyword for element in dataset} <= known
        for usage, kind, keyword in attributes:
            if usage == "M" and kind in ("1", "2"):
                assert keyword in dataset
                assert kind == "2" or dataset[keyword].value not in (None, "")


def test_chosen_scans_have_even_slices_and_the_choice_follows_from_the_seed(scans: list[Scan]) -> None:
    chosen = choose_scans(scans, 20, seed=4)
    assert chosen == choose_scans(scans, 20, seed=4)
    assert chosen != choose_scans(scans, 20, seed=5)
    for scan in chosen:
        assert scan.annotations
        assert np.ptp(np.diff(scan.slice_z)) < 0.1


@pytest.mark.parametrize("count", [0, 1019])
def test_a_number_of_scans_that_is_not_there_is_refused(scans: list[Scan], count: int) -> None:
    with pytest.raises(InputError, match=f"scans: {count} cannot be chosen"):
        choose_scans(scans, count, seed=0)


def test_a_negative_margin_is_refused(scans: list[Scan]) -> None:
    with pytest.raises(InputError, match="slices: a whole number of 0 or more is needed, not -1"):
        trim(choose_scans(scans, 1, 0)[0], -1)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(series_module, "write_readings", fail)
    with pytest.raises(InputError, match=r"ct: cannot be written \(disk full\); choose another output"):
        write_phantom_series(tmp_path / "ct", 1, margin_slices=0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(full_disk: Path) -> None:
    with pytest.raises(InputError, match=r"ct: cannot be written \(No space left on device\)"):
        write_phantom_series(full_disk / "ct", 1, margin_slices=0)
    assert [path.name for path in full_disk.iterdir()] == ["other"]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    command = [sys.executable, "-m", "nodule_plugin.lidc.phantom", "--nodules", "1", "--output", str(tmp_path)]
    done = run_python(command, tmp_path.parent)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "not an empty folder" in done.stderr
    assert "Traceback" not in done.stderr
