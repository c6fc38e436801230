"""NIfTI files from elsewhere: what their headers say is believed only as far as it can be."""

from __future__ import annotations

import gzip
import re
import resource
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from crops_folder import write_volume

from nodule_plugin.data.nifti import open_nifti, read_plane, read_volume
from nodule_plugin.errors import InputError

VOXELS = np.random.default_rng(0).integers(-1000, 100, (4, 5, 3), dtype=np.int16)


def _header(**fields: object) -> nib.Nifti1Header:
    header = nib.Nifti1Image(VOXELS, np.diag([-1.0, -1.0, 1.0, 1.0])).header
    for name, value in fields.items():
        header[name] = value
    header["magic"] = b"n+1"
    header["vox_offset"] = fields.get("vox_offset", 352)
    return header


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "bytes by its header"),
        ({"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1]}, "more than 1,073,741,824; cut the volume"),
        ({"dim": [3, 1024, 1024, 200, 1, 1, 1, 1], "scl_slope": 2, "scl_inter": 1}, "is of 1,677,721,600 bytes"),
        ({"vox_offset": 2**31 - 16}, "bytes by its header"),
        ({"vox_offset": np.nan}, "bytes by its header"),
        ({"datatype": 128, "bitpix": 24}, "holds voxels of the kind"),
        ({"datatype": 32, "bitpix": 64}, "holds voxels of the kind complex64"),
        ({"xyzt_units": 3}, "measures in the unit micron; mm are needed"),
        ({"dim": [3, -4, 5, 3, 1, 1, 1, 1]}, "is not a whole NIfTI file|bytes by its header"),
        ({"pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, "has voxels of 0 x 1 x 1 mm; mend its header"),
        ({"srow_x": [0, 0, 0, 0]}, "an affine that does not say"),
    ],
)
def test_headers_are_judged_before_anything_is_inflated(tmp_path: Path, fields: dict, message: str) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(_header(**fields).binaryblock + bytes(4) + VOXELS.tobytes("F")))
    with pytest.raises(InputError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_extension_that_inflates_to_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    header = _header(vox_offset=2**30).binaryblock
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + b"\1\0\0\0" + np.array([2**30 - 352, 6], "<i4").tobytes())
        for _ in range(64):
            file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="bytes by its header"):
        open_nifti(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB


@pytest.mark.parametrize("content", [b"", b"\0" * 352, b"\x1f\x8b" + b"x" * 50, b"no volume at all" * 40])
def test_what_is_no_nifti_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is not a whole NIfTI file"):
            open_nifti(tmp_path / name)


def test_a_file_shorter_than_its_header_says_is_known_before_room_is_made_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(_header(dim=[3, 1000, 1000, 200, 1, 1, 1, 1]).binaryblock + bytes(14))
    with pytest.raises(InputError, match=r"a\.nii is not a whole NIfTI file \(shorter than shape \(1000, 1000, 200\)"):
        open_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions_are_read(tmp_path: Path, kind: type) -> None:
    nib.save(kind(VOXELS, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert (volume.axes, volume.spacing, volume.doubts) == ("LPS", (1, 1, 2), ())
    assert np.array_equal(volume.voxels, VOXELS)


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_such_slice(tmp_path: Path, index: int) -> None:
    write_volume(tmp_path / "a.nii.gz", VOXELS, axes="SRP")
    with pytest.raises(InputError, match=rf"has shape \(3, 4, 5\) and no slice {index} along its axis 1"):
        read_plane(tmp_path / "a.nii.gz", index, "SRP")


def _turned(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[-1, 0, 0, 0], [0, -cos, -sin, 0], [0, -sin, cos, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("affine", "codes", "doubt"),
    [
        (_turned(0), 1, None),
        (_turned(20), 1, None),
        (_turned(30), 1, "axes more than 25 degrees off the patient's"),
        (np.diag([-2.0, -1.0, 1.0, 1.0]), 1, "voxel sizes .* that are not those of its affine"),
        (_turned(0), 0, "no direction of its axes in the header"),
    ],
)
def test_what_the_header_leaves_open_is_a_doubt(
    tmp_path: Path, affine: np.ndarray, codes: int, doubt: str | None
) -> None:
    image = nib.Nifti1Image(VOXELS, affine)
    image.set_sform(affine, codes)
    image.set_qform(affine, codes, update_affine=False)
    image.header["pixdim"][1:4] = 1
    path = tmp_path / "a.nii.gz"
    nib.save(image, path)
    volume = read_volume(path)
    assert (volume.axes, len(volume.doubts)) == ("LPS", int(doubt is not None))
    if doubt is not None:
        assert re.match(doubt, volume.doubts[0])
    assert np.array_equal(volume.voxels, VOXELS)
