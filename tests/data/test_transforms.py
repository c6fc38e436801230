from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import make_slice
from monai.bundle import ConfigParser

from nodule_plugin.data.transforms import nodule_transform, read_slice, resample_roi
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.pydicom_versions import save_conforming


@pytest.fixture
def item(tmp_path: Path) -> dict:
    """A 20 x 30 x 4 volume (x, y, z) whose voxel value is 100 z + y, so that rows can be told from columns."""
    x, y, z = np.meshgrid(np.arange(20), np.arange(30), np.arange(4), indexing="ij")
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image((100 * z + y).astype(np.int16) + 0 * x.astype(np.int16), np.eye(4)), path)
    return {
        "image": str(path),
        "slice_index": 2,
        "centre": [10.0, 8.0],
        "spacing": [0.5, 0.5],
        "roi_mm": 4.0,
        "id": "volume",
        "prompt": "A nodule.",
    }


def test_slice_is_rows_by_columns(item: dict) -> None:
    hu = read_slice(Path(item["image"]), 2)
    assert hu.shape == (30, 20)
    assert hu[7, 3] == 207


def test_a_grid_of_the_slice_s_own_size_is_the_crop(item: dict) -> None:
    roi = nodule_transform(8, (0, 1000))(item)["image"]
    assert ((roi[0, :, 0] + 1) * 500).round().tolist() == [207, 208, 209, 210, 211, 212, 213, 214]
    oblong = nodule_transform([8, 4], (0, 1000))({**item, "spacing": [0.5, 1.0]})["image"]  # (row, column)
    assert oblong.shape == (3, 8, 4)
    assert torch.equal(oblong[0, :, 0], roi[0, :, 0])


def test_a_region_beyond_the_edge_is_air() -> None:
    roi = resample_roi(np.zeros((4, 4), np.float32), (-2, 3, 2, 7), (5, 5), (-1000, 1000))
    assert (roi[:2] == -1).all()
    assert (roi[2:, :2] == 0).all()
    assert (roi[:, 2:] == -1).all()
    assert (resample_roi(np.zeros((4, 4), np.float32), (6, 9, -5, -2), (3, 3)) == -1).all()


@pytest.mark.parametrize(
    ("content", "name", "slice_index", "message"),
    [
        (None, "absent.nii.gz", 0, "there is no file"),
        (b"not an image", "broken.nii.gz", 0, "is not a whole NIfTI"),
        (b"not an image", "broken.dcm", None, "cannot be read as a DICOM"),
        (b"", "empty.dcm", None, "cannot be read as a DICOM"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes | None, name: str, slice_index: int, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_slice(path, slice_index)
    assert str(path) in str(caught.value)


def test_missing_slice_is_named(item: dict) -> None:
    with pytest.raises(InputError, match="no slice 9"):
        read_slice(Path(item["image"]), 9)


def test_a_slice_with_values_that_are_none_is_named(item: dict) -> None:
    volume = np.full((20, 30, 4), -500, np.float32)
    volume[3, 4, 2] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), item["image"])
    assert (read_slice(Path(item["image"]), 1) == -500).all()
    with pytest.raises(InputError, match=r"^image: \S+volume\.nii\.gz has values that are not finite"):
        read_slice(Path(item["image"]), 2)


def test_a_slice_in_colour_is_named(tmp_path: Path) -> None:
    dataset = make_slice(0, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset.PixelData = 3 * dataset.PixelData
    save_conforming(dataset, tmp_path / "colour.dcm")
    with pytest.raises(
        InputError, match=r"^image: \S+colour\.dcm has pixels of shape \(16, 16, 3\); one slice is needed"
    ):
        read_slice(tmp_path / "colour.dcm", None)


@pytest.mark.parametrize("size", [64, 512])
def test_the_bundle_transforms_give_the_models_input(item: dict, repository: Path, size: int) -> None:
    parser = ConfigParser()
    parser.read_config(str(repository / "bundle" / "configs" / "train.json"))
    parser["image_size"] = size
    parser["resample_kernel"] = "cubic"
    transforms = parser.get_parsed_content("train#preprocessing")
    image = transforms(item)["image"]
    assert image.shape == (3, size, size)
    assert image.dtype == torch.float32
    assert -1 <= image.min() <= image.max() <= 1
    assert torch.equal(image[0], image[2])
