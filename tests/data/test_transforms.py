from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from nodule_plugin.data.transforms import CropNoduleROId, LoadNoduleSliced, crop_padded, read_slice
from nodule_plugin.errors import InputError


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
    image = LoadNoduleSliced()(item)["image"]
    assert image.shape == (1, 30, 20)
    assert image[0, 7, 3] == 207


def test_crop_is_centred(item: dict) -> None:
    roi = CropNoduleROId()(LoadNoduleSliced()(item))["image"]
    assert roi.shape == (1, 8, 8)
    assert roi[0, :, 0].tolist() == [207, 208, 209, 210, 211, 212, 213, 214]


def test_crop_beyond_the_edge_is_air() -> None:
    roi = crop_padded(torch.zeros(1, 4, 4), (-2, 3, 2, 7))
    assert roi.shape == (1, 5, 5)
    assert (roi[0, :2] == -1000).all()
    assert (roi[0, 2:, :2] == 0).all()
    assert (roi[0, :, 2:] == -1000).all()


def test_crop_wholly_outside_is_air() -> None:
    assert (crop_padded(torch.zeros(1, 4, 4), (6, 9, -5, -2)) == -1000).all()


@pytest.mark.parametrize(
    ("content", "name", "slice_index", "message"),
    [
        (None, "absent.nii.gz", 0, "there is no file"),
        (b"not an image", "broken.nii.gz", 0, "cannot be read as a NIfTI"),
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


@pytest.mark.parametrize("size", [64, 512])
def test_the_bundle_transforms_give_the_models_input(item: dict, repository: Path, size: int) -> None:
    parser = ConfigParser()
    parser.read_config(str(repository / "bundle" / "configs" / "train.json"))
    parser["image_size"] = size
    transforms = parser.get_parsed_content("train#preprocessing")
    assert isinstance(transforms, Compose)
    image = transforms(item)["image"]
    assert image.shape == (3, size, size)
    assert image.dtype == torch.float32
    assert -1 <= image.min() <= image.max() <= 1
    assert torch.allclose(image[0], image[2])
