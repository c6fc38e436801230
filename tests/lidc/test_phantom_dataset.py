"""Phantoms by the thousand: the choice of nodules, the folder of crops."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.roi import padding_fraction, roi_bounds
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.phantom import (
    Subject,
    choose_subjects,
    load_subjects,
    write_phantom_crops,
)
from nodule_plugin.lidc.phantom import dataset as dataset_module
from nodule_plugin.parallel import workers

COLUMNS = (
    "image,patient_id,crop_id,series_instance_uid,x_mm,y_mm,z_mm,diameter_mm,malignancy,calcification,"
    "internal_structure,lobulation,margin,sphericity,spiculation,subtlety,texture,readers,annotation_source"
)


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    return load_subjects()


@pytest.fixture(scope="module")
def small(subjects: list[Subject]) -> list[Subject]:
    """Some nodules of a few patients, quick to draw."""
    return [subject for subject in subjects if subject.diameter_mm < 14][:40]


@pytest.fixture(scope="module")
def written(small: list[Subject], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_crops(tmp_path_factory.mktemp("phantoms") / "crops", nodules=16, seed=3, subjects=small)


def test_every_nodule_of_the_database_can_be_drawn(subjects: list[Subject]) -> None:
    assert len(subjects) == 2651
    assert min(subject.diameter_mm for subject in subjects) >= 3


def test_rare_ratings_are_well_represented(subjects: list[Subject]) -> None:
    chosen = choose_subjects(subjects, 300, seed=0)
    assert len(set(map(id, chosen))) == 300
    assert np.mean([subject.typical for subject in chosen]) > 0.9
    assert np.mean([subject.findings.calcified for subject in chosen]) >= 0.12
    for rating, codes in {
        "texture": (1, 2, 3),
        "spiculation": (3, 4, 5),
        "margin": (1, 2, 3),
        "sphericity": (2,),
    }.items():
        for code in codes:
            assert sum(getattr(subject.findings, rating) == code for subject in chosen) >= 24, (rating, code)
    available = [subject for subject in subjects if subject.findings.sphericity == 1]
    assert sum(subject.findings.sphericity == 1 for subject in chosen) == min(24, len(available))


def test_the_choice_follows_from_the_seed(subjects: list[Subject]) -> None:
    assert choose_subjects(subjects, 50, seed=1) == choose_subjects(subjects, 50, seed=1)
    assert choose_subjects(subjects, 50, seed=1) != choose_subjects(subjects, 50, seed=2)


@pytest.mark.parametrize("count", [0, 41])
def test_a_number_of_nodules_that_is_not_there_is_refused(small: list[Subject], count: int) -> None:
    with pytest.raises(InputError, match=f"nodules: {count} cannot be chosen, there are 40"):
        choose_subjects(small, count, seed=0)


def test_the_table_has_the_columns_of_real_crops_and_names_the_source(written: Path) -> None:
    table = pd.read_csv(written / "nodules.csv")
    assert ",".join(table.columns) == COLUMNS
    assert len(table) == 16
    assert table.annotation_source.str.startswith("LIDC-IDRI-").all()
    assert table.groupby("patient_id").annotation_source.nunique().max() == 1
    assert table.groupby("annotation_source").patient_id.nunique().max() == 1


def test_nothing_but_the_source_column_passes_for_a_real_patient(written: Path, small: list[Subject]) -> None:
    table = pd.read_csv(written / "nodules.csv").drop(columns="annotation_source")
    text = table.to_csv()
    assert "LIDC" not in text
    assert not any(subject.scan.series_instance_uid in text for subject in small)
    assert not any("LIDC" in path.name for path in written.rglob("*"))
    assert table.patient_id.str.fullmatch(r"PHANTOM-\d{4}").all()


def test_the_folder_says_that_it_is_synthetic(written: Path) -> None:
    sidecar = json.loads((written / "dataset.json").read_text())
    assert sidecar["source"] == "phantom"
    assert sidecar["synthetic"] is True
    assert (sidecar["seed"], sidecar["nodules"]) == (3, 16)
    assert "CC BY 3.0" in sidecar["licence"]
    assert len(sidecar["citation"]) == 3
    image = nib.load(next((written / "images").iterdir()))
    assert b"SYNTHETIC" in image.header["descrip"].tobytes()


def test_positions_in_the_table_are_the_masks_in_patient_coordinates(written: Path) -> None:
    for row in pd.read_csv(written / "nodules.csv").itertuples():
        mask = nib.load(written / str(row.image).replace("images", "masks"))
        voxels = np.argwhere(np.asarray(mask.dataobj))
        middle = (np.append(voxels.mean(axis=0), 1) @ mask.affine.T)[:3] * [-1, -1, 1]
        assert np.abs(middle - [row.x_mm, row.y_mm, row.z_mm]).max() < max(3.0, row.diameter_mm / 3)


def test_the_crops_are_read_as_phantoms_without_padding(written: Path) -> None:
    nodules = nodules_from_crops(written)
    assert nodules.source == "phantom"
    assert len(nodules.nodules) == 16
    assert all(nodule.synthetic for nodule in nodules.nodules)
    for nodule in nodules.nodules:
        bounds = roi_bounds(nodule.centre, nodule.spacing, 2 * nodule.diameter_mm)
        assert padding_fraction(bounds, nodule.shape) == 0


def test_the_same_seed_writes_the_same_pixels_and_table(written: Path, small: list[Subject], tmp_path: Path) -> None:
    with workers(2):  # who draws must not count
        again = write_phantom_crops(tmp_path / "again", nodules=16, seed=3, subjects=small)
    assert (again / "nodules.csv").read_bytes() == (written / "nodules.csv").read_bytes()
    for path in sorted((written / "images").iterdir()):
        first, second = (np.asarray(nib.load(folder / "images" / path.name).dataobj) for folder in (written, again))
        assert np.array_equal(first, second)


def test_a_failure_leaves_nothing_behind(small: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = dataset_module.render_crop, []

    def fail_at_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("disk full")
        return real(*args, **kwargs)

    monkeypatch.setattr(dataset_module, "render_crop", fail_at_third)
    with pytest.raises(InputError, match=r"crops: cannot be written \(disk full\)"):
        write_phantom_crops(tmp_path / "crops", nodules=5, subjects=small)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_left_alone(small: list[Subject], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_phantom_crops(tmp_path, nodules=2, subjects=small)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
