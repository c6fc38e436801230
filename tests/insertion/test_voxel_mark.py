"""Marks in the voxels of inserted nodules: found in whatever keeps the numbers, and nowhere else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from ct_hosts import chest, write_host

from nodule_plugin.errors import InputError
from nodule_plugin.insertion.host import read_host
from nodule_plugin.provenance.codebook import PUBLIC, MarkKey
from nodule_plugin.provenance.files import described, detect_file
from nodule_plugin.provenance.parity_mark import INSERTED, ParityMark, detect_parity

PIXEL_MM = 0.8
FINE = chest((16, 176, 224), PIXEL_MM)
TURNED: dict[str, dict[str, Any]] = {
    "axial": {},
    "turned in the plane": {"orientation": (0, 1, 0, -1, 0, 0), "hu": FINE.transpose(0, 2, 1)[:, ::-1]},
    "upside down": {"orientation": (-1, 0, 0, 0, 1, 0), "step": (0, 0, -2.5)},
    "odd intercept": {"signed": True, "bits": 16, "intercept": -999},
}


class NoModel:
    """Where voxels carry a mark, no model is asked."""

    def __call__(self, *_: Any) -> None:
        raise AssertionError("the model was asked")


@pytest.fixture(scope="module")
def marked(insert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    write_host(folder / "host", hu=FINE, pixel_mm=PIXEL_MM)
    insert(folder / "host", folder / "out")
    insert(folder / "host", folder / "plain", mark=False)
    return folder


def volume(path: Path) -> np.ndarray:
    """(slices, rows, columns) HU."""
    return np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize("name", TURNED)
def test_the_mark_is_found_however_the_host_lies(name: str, tmp_path: Path, insert: Any) -> None:
    write_host(tmp_path / "host", **{"hu": FINE, "pixel_mm": PIXEL_MM, **TURNED[name]})
    out = insert(tmp_path / "host", tmp_path / "out")
    said = json.loads((out / "manifest.json").read_text())["mark"]
    found = detect_file(out / "seed0" / "volume.nii.gz", NoModel())
    assert found.found
    assert found.payload == said["payload"]
    assert said["key"] == "public"
    assert "volume.nii.gz: holds an inserted nodule, marked as synthetic (p " in described("volume.nii.gz", found)
    assert json.loads(described("volume.nii.gz", found, as_json=True))["inserted"]
    slices = [pydicom.dcmread(path) for path in sorted((out / "seed0" / "ct").glob("*.dcm"))]
    nodule = volume(out / "seed0" / "mask.nii.gz").any((1, 2))
    middle = sorted(slices, key=lambda item: item.ImagePositionPatient[2])[int(np.flatnonzero(nodule).mean())]
    path = next(path for path in (out / "seed0" / "ct").glob("*.dcm") if pydicom.dcmread(path) == middle)
    assert detect_file(path, NoModel()).found


def test_a_part_and_another_orientation_keep_the_mark(marked: Path, tmp_path: Path) -> None:
    whole = nibabel.load(marked / "out" / "seed0" / "volume.nii.gz")
    nodule = np.argwhere(volume(marked / "out" / "seed0" / "mask.nii.gz")).mean(0).astype(int)[::-1]
    around = [slice(place - 21, place + 23) for place in nodule[:2]]
    part = whole.slicer[(*around, slice(nodule[2] - 5, nodule[2] + 6))]
    flipped = part.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nibabel.save(flipped, tmp_path / "part.nii.gz")
    assert detect_file(tmp_path / "part.nii.gz", NoModel()).found


def test_the_host_and_a_run_without_carry_none(marked: Path) -> None:
    hosts = read_host(marked / "host").hu
    plain = volume(marked / "plain" / "seed0" / "volume.nii.gz")
    for values in (hosts, plain):
        assert not detect_parity(values, INSERTED).found
    assert json.loads((marked / "plain" / "manifest.json").read_text())["mark"] is None
    after = volume(marked / "out" / "seed0" / "volume.nii.gz")
    assert np.abs(after - plain).max() == 1


def test_only_its_own_key_finds_a_secret_mark(marked: Path, insert: Any, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    out = insert(marked / "host", tmp_path / "out", mark_key=key)
    values = volume(out / "seed0" / "volume.nii.gz")
    assert detect_parity(values, INSERTED, MarkKey("own", key.read_bytes())).found
    assert not detect_parity(values, INSERTED).found
    with pytest.raises(InputError, match="cannot be read"):
        insert(marked / "host", tmp_path / "other", mark_key=tmp_path / "none")
    assert not (tmp_path / "other").exists()


def test_stored_values_that_are_no_whole_hu_carry_none(
    tmp_path: Path, insert: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write_host(tmp_path / "host", slopes=(0.5,), bits=16)
    with caplog.at_level(logging.WARNING):
        out = insert(tmp_path / "host", tmp_path / "out")
    assert "can carry no mark" in caplog.text
    assert json.loads((out / "manifest.json").read_text())["mark"] is None


def test_values_at_the_ends_of_what_is_stored_keep_their_parity(tmp_path: Path) -> None:
    write_host(tmp_path / "host")
    host = read_host(tmp_path / "host")
    hu = host.hu.copy()
    hu[0, 0], hu[0, 1] = 1e5, -1e5
    parity = np.full(hu.shape, -1, np.int8)
    parity[0, :2] = ParityMark(PUBLIC, "00", INSERTED).parity(hu.shape)[0, :2]
    stored = host.to_stored(hu, parity)
    assert np.array_equal(stored[0][:2] % 2, parity[0, :2])
    assert set(np.unique(stored[0][0])) == {4094, 4095}
    assert set(np.unique(stored[0][1])) == {0, 1}
    assert stored[1] is host.stored[1]
