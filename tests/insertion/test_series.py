"""The written series, in every geometry and encoding of its host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from ct_hosts import FINDINGS, chest, write_host
from dicom_files import COMPRESSED
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from nodule_plugin.insertion.blending import insert as blend
from nodule_plugin.insertion.block import Block
from nodule_plugin.insertion.derived import Belonging
from nodule_plugin.insertion.host import Geometry, read_host
from nodule_plugin.insertion.lesions import place_lesions, read_lesions
from nodule_plugin.insertion.lungs import find_lungs
from nodule_plugin.insertion.place import sample_weight
from nodule_plugin.insertion.sources import CopyPaste

PLACE = np.array([30.0, 12.0, 2.0])
COS, SIN = float(np.cos(np.radians(15))), float(np.sin(np.radians(15)))
HOSTS: dict[str, dict[str, Any]] = {
    "axial": {},
    "oblique": {"orientation": (1, 0, 0, 0, COS, SIN), "step": (0, -2.5 * SIN, 2.5 * COS)},
    "turned in the plane": {"orientation": (0, 1, 0, -1, 0, 0), "hu": chest().transpose(0, 2, 1)[:, ::-1]},
    "upside down": {"orientation": (-1, 0, 0, 0, 1, 0), "step": (0, 0, -2.5)},
    "tilted gantry": {"step": (0, 0.5, 2.5)},
    "thick slices": {"hu": chest((9, 112, 112)), "step": (0, 0, 5.0)},
    "overlapping slices": {"SliceThickness": 5.0},
    "slopes": {"slopes": (0.5, 2.0, 1.25), "intercept": -1000, "bits": 16},
    "signed": {"signed": True, "bits": 16, "intercept": 0},
    "signed 12 bits": {"signed": True, "intercept": -24},
    **{f"compressed {syntax}": {"syntax": syntax} for syntax in COMPRESSED},
}


def read(folder: Path) -> dict[tuple[float, ...], pydicom.FileDataset]:
    """The slices by where they lie."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    return {tuple(float(value) for value in item.ImagePositionPatient): item for item in slices}


def points(item: pydicom.Dataset, pixels: np.ndarray) -> np.ndarray:
    """(N, 2) rows and columns as patient coordinates (PS3.3 C.7.6.2.1.1)."""
    cosines, spacing = np.array(item.ImageOrientationPatient, float), np.array(item.PixelSpacing, float)
    return (
        np.array(item.ImagePositionPatient, float)
        + pixels[:, 1:] * spacing[1] * cosines[:3]
        + pixels[:, :1] * spacing[0] * cosines[3:]
    )


@pytest.mark.parametrize("name", HOSTS)
def test_only_the_nodules_voxels_change(name: str, tmp_path: Path, insert: Any) -> None:
    write_host(tmp_path / "host", **HOSTS[name])
    out = insert(tmp_path / "host", tmp_path / "out")
    before, after = read(tmp_path / "host"), read(out / "seed0" / "ct")
    assert set(before) == set(after)
    volume = np.asarray(nibabel.load(out / "seed0" / "volume.nii.gz").dataobj).transpose(2, 1, 0)
    in_order = [pydicom.dcmread(path) for path in sorted((out / "seed0" / "ct").glob("*.dcm"))]
    hu = [item.pixel_array * float(item.RescaleSlope) + float(item.RescaleIntercept) for item in in_order]
    np.testing.assert_allclose(volume, hu, atol=1e-3)
    changed, darker, untouched, core = [], 0, 0, []
    for where, new in after.items():
        old = before[where]
        pixels = np.argwhere(np.ones(new.pixel_array.shape))
        inside = np.linalg.norm(points(new, pixels) - PLACE, axis=1) < 2.5
        core += (new.pixel_array.ravel()[inside] * float(new.RescaleSlope) + float(new.RescaleIntercept)).tolist()
        for keyword in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept",
                        "BitsStored", "PixelRepresentation", "KVP", "ConvolutionKernel"):  # fmt: skip
            assert new[keyword].value == old[keyword].value, keyword
        difference = new.pixel_array != old.pixel_array
        if not difference.any():
            untouched += 1
            assert new.PixelData == old.PixelData
            assert new.file_meta.TransferSyntaxUID == old.file_meta.TransferSyntaxUID
            continue
        assert new.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        changed.append(points(new, np.argwhere(difference)))
        darker += int((new.pixel_array[difference] < old.pixel_array[difference]).sum())
    assert np.mean(core) == pytest.approx(30, abs=40)  # a ball of 30 HU in lung of -860, with the noise of both
    places = np.concatenate(changed)
    reach = 5 + 2.5 + np.hypot(1.6, float(new.SliceThickness))
    assert np.linalg.norm(places - PLACE, axis=1).max() < reach
    assert np.abs(places.mean(axis=0) - PLACE).max() < 1.0
    assert untouched > len(after) / 3
    assert darker < 0.5 * len(places)
    (nodule,) = json.loads((out / "manifest.json").read_text())["series"][0]["nodules"]
    assert nodule["position_mm"] == pytest.approx(PLACE)
    assert nodule["measured_diameter_mm"] == pytest.approx(10, rel=0.1)
    loose = 0.4 if float(new.SliceThickness) > 2.5 else 0.15  # as wide as asked in thick slices is larger in all
    assert nodule["measured_volume_mm3"] == pytest.approx(4 / 3 * np.pi * 5**3, rel=loose)


@pytest.mark.parametrize("patient", ["replace", "keep"])
def test_big_endian_hosts_are_written_as_little_endian(patient: str, tmp_path: Path, insert: Any) -> None:
    for path in write_host(tmp_path / "host"):
        dataset = pydicom.dcmread(path)
        swapped = dataset.pixel_array.astype(">u2").tobytes()
        big = pydicom.Dataset(dataset)
        big.file_meta = dataset.file_meta
        big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        big.PixelData = swapped
        big.save_as(path, enforce_file_format=True)
    out = insert(tmp_path / "host", tmp_path / "out", belonging=Belonging(patient))
    before, after = read(tmp_path / "host"), read(out / "seed0" / "ct")
    assert {item.file_meta.TransferSyntaxUID for item in after.values()} == {ExplicitVRLittleEndian}
    changed = [int((after[where].pixel_array != before[where].pixel_array).sum()) for where in before]
    assert 0 < sum(changed) < 2000
    assert changed.count(0) > len(changed) / 3


def test_values_are_cut_off_at_the_bits_that_are_stored(tmp_path: Path, insert: Any) -> None:
    # 2 ** 10 stored values end at -1 HU; the nodule has 30.
    write_host(tmp_path / "host", np.minimum(chest(), -100), bits=10)
    after = read(insert(tmp_path / "host", tmp_path / "out") / "seed0" / "ct")
    assert max(int(item.pixel_array.max()) for item in after.values()) == 2**10 - 1


def test_padding_is_no_tissue(tmp_path: Path, insert: Any) -> None:
    hu = chest()
    hu[:, 60:64, 76:79] = -2000  # within the nodule to be
    write_host(tmp_path / "host", hu, signed=True, bits=16, intercept=0, PixelPaddingValue=-2000)
    after = read(insert(tmp_path / "host", tmp_path / "out") / "seed0" / "ct")
    assert all((item.pixel_array[60:64, 76:79] == -2000).all() for item in after.values())


def test_a_change_counts_in_full_in_the_nodule_and_fades_around_it(host: Path, crops: Path) -> None:
    volume, paste = read_host(host), CopyPaste.from_folder(crops)
    lesions = read_lesions(position=PLACE, diameter_mm=10, findings=FINDINGS)
    (place,) = place_lesions(lesions, volume, find_lungs(volume), paste, paste.draw_mask, seed=0)
    hu = volume.hu.copy()
    blend(hu, place, volume, lambda before, mask, asked: before + 400, 1.0, 1)  # type: ignore[arg-type]
    change = (hu - volume.hu)[place.box]
    assert change[place.mask > 0.9] == pytest.approx(400, abs=40)
    fading = (place.weight > 0.02) & (place.weight < 0.98)
    assert fading.sum() > 50
    assert change[fading] == pytest.approx(400 * place.weight[fading], abs=60)  # weighed by sample, noise put back
    in_full, half, none = sample_weight(np.eye(1, 11)[None], (1, 1, 0.25))[0, 0, [4, 7, 10]]  # at 1, 1.75 and 2.5 mm
    assert (in_full, half, none) == (1, 0.5, 0)
    hu[place.box] -= change
    np.testing.assert_allclose(hu, volume.hu, atol=1e-3)


def test_a_voxel_shows_the_mean_over_its_slices_thickness() -> None:
    """Slices of 5 mm every 2.5 mm: of an edge 1.25 mm above a slice it shows a quarter, of one below three quarters."""
    matrix = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]])  # z by slice, y by row, x by column
    block = Block.around(np.array([12.0, 12.0, 26.25]), Geometry(matrix, (20, 24, 24), 5.0), (0.5, 1, 1), (60, 12, 12))
    above = np.repeat(np.arange(60) >= 30, 144).reshape(60, 12, 12).astype(float)
    box = block.box()
    shown = block.to_series(above, box)[:, 5, 5]
    assert shown[10 - box[0].start : 12 - box[0].start] == pytest.approx([0.25, 0.75], abs=0.03)


def test_a_seed_is_a_nodule_and_a_run_its_files(inserted: Path, host: Path, insert: Any, tmp_path: Path) -> None:
    again = insert(host, tmp_path / "again", seeds=(0, 1))
    files = sorted(path.relative_to(inserted) for path in inserted.rglob("*") if path.is_file())
    assert [file for file in files if (inserted / file).read_bytes() != (again / file).read_bytes()] == []
    one, other = (read(inserted / name / "ct") for name in ("seed0", "seed1"))
    assert any((one[where].pixel_array != other[where].pixel_array).any() for where in one)
    assert not {item.SOPInstanceUID for item in one.values()} & {item.SOPInstanceUID for item in other.values()}


def test_other_times_give_other_identifiers(inserted: Path, host: Path, insert: Any, tmp_path: Path) -> None:
    later = read(insert(host, tmp_path / "later", created="2026-02-01T12:00:00") / "seed0" / "ct")
    first = read(inserted / "seed0" / "ct")
    assert all(later[where].SOPInstanceUID != first[where].SOPInstanceUID for where in first)
    assert all((later[where].pixel_array == first[where].pixel_array).all() for where in first)
