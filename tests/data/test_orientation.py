"""However a volume or a slice is stored, it is shown with the patient's left to the right and the back below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crops_folder import write_crops, write_volume
from dicom_files import nodule_xml, write_message, write_series
from pydicom import dcmread
from small_models.neighbours import enlarge_training

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.datalist import build_datalist
from nodule_plugin.data.lidc_tree import nodules_from_lidc
from nodule_plugin.data.orientation import directions, slice_directions
from nodule_plugin.data.transforms import nodule_transform, read_slice
from nodule_plugin.errors import InputError

HU = np.random.default_rng(0).integers(-1000, 100, (20, 30, 5), dtype=np.int16)
MASK = np.zeros((20, 30, 5), np.uint8)
MASK[6:11, 10:15, 2:5] = 1
POINTS = [(4, 2), (4, 8), (10, 8), (10, 2)]


def _folder(folder: Path, axes: str) -> Path:
    write_crops(folder)
    for kind, voxels in (("images", HU), ("masks", MASK)):
        write_volume(folder / kind / "P0_R_1.nii.gz", voxels, axes=axes)
    return folder


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LPI", "RPS", "PSL", "ASR", "IRA", "SPL"])
def test_crops_are_shown_alike_however_they_are_stored(tmp_path: Path, axes: str) -> None:
    [nodule] = nodules_from_crops(_folder(tmp_path, axes)).nodules
    assert nodule.axes == axes
    assert (nodule.slice_index, nodule.centre, nodule.shape) == (3, (12.0, 8.0), (30, 20))
    assert nodule.spacing == pytest.approx((0.7, 0.5))
    assert np.array_equal(read_slice(nodule.image, 3, nodule.axes), HU[:, :, 3].T)


@pytest.mark.parametrize("axes", ["RAS", "IRA"])
def test_the_data_list_says_how_to_turn(tmp_path: Path, axes: str) -> None:
    plain, stored = (build_datalist(nodules_from_crops(_folder(tmp_path / name, name))) for name in ("LPS", axes))
    cut = nodule_transform(16)
    for item, same in zip(*(enlarge_training(content, reach=0.4)["training"] for content in (plain, stored))):
        assert same == {**item, "axes": axes}
        pixels = [cut({**one, "image": f"{content['dataset_dir']}/{one['image']}"})["image"]
                  for one, content in ((item, plain), (same, stored))]  # fmt: skip
        assert (pixels[0] == pixels[1]).all()


def test_data_lists_without_axes_are_read_as_stored(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", HU, axes="RAS")
    item = {"image": tmp_path / "a.nii.gz", "slice_index": 3, "centre": [15, 10], "spacing": [1, 1], "roi_mm": 7}
    old, turned = nodule_transform(7)(item)["image"], nodule_transform(7)({**item, "axes": "RAS", "centre": [14, 9]})
    assert (old.rot90(2, (-2, -1)) == turned["image"]).all()


@pytest.mark.parametrize("axes", ["", "LP", "LPX", "LPR", "LPSS", "lps"])
def test_axes_that_are_none_are_named(tmp_path: Path, axes: str) -> None:
    write_volume(tmp_path / "a.nii.gz", HU)
    with pytest.raises(InputError, match=f"axes: L or R, P or A, and S or I are needed, in any order, not '{axes}'"):
        read_slice(tmp_path / "a.nii.gz", 0, axes)


def test_a_mask_that_runs_otherwise_than_its_image_is_refused(tmp_path: Path) -> None:
    write_volume(_folder(tmp_path, "LPS") / "masks" / "P0_R_1.nii.gz", MASK, axes="RAS")
    with pytest.raises(InputError, match=r"masks\S+ has shape \(20, 30, 5\) \(axes RAS\), its image .* \(LPS\)"):
        nodules_from_crops(tmp_path)


@pytest.mark.parametrize(
    ("cosines", "axes"),
    [
        ([1, 0, 0, 0, 1, 0], "LPS"),
        ([-1, 0, 0, 0, -1, 0], "RAS"),  # prone
        ([-1, 0, 0, 0, 1, 0], "RPS"),
        ([1, 0, 0, 0, 0.97, -0.24], "LPS"),  # tilted gantry
        ([0, 1, 0, 1, 0, 0], "PLS"),
    ],
)
def test_series_are_shown_alike_however_the_patient_lies(tmp_path: Path, cosines: list[float], axes: str) -> None:
    assert slice_directions(cosines) == axes
    files = write_series(tmp_path, [0.0, 2.5, 5.0], ImageOrientationPatient=cosines)
    shown = np.random.default_rng(0).integers(-1000, 100, (16, 16), dtype=np.int16)
    stored = {"LPS": shown, "RAS": shown[::-1, ::-1], "RPS": shown[:, ::-1], "PLS": shown.T}[axes]
    dataset = dcmread(files[1])
    dataset.PixelData = (stored + 1024).astype("<i2").tobytes()
    dataset.save_as(files[1])
    own = {"LPS": lambda x, y: (x, y), "RAS": lambda x, y: (15 - x, 15 - y), "RPS": lambda x, y: (15 - x, y),
           "PLS": lambda x, y: (y, x)}[axes]  # fmt: skip
    write_message(tmp_path / "reading.xml", [nodule_xml([(2.5, [own(*point) for point in POINTS])])])
    [nodule] = nodules_from_lidc(tmp_path).nodules
    assert (nodule.axes, nodule.centre) == (axes, (5.0, 7.0))
    assert np.array_equal(read_slice(nodule.image, None, nodule.axes), shown)


def test_an_affine_that_places_no_voxel_has_no_directions() -> None:
    assert directions(np.diag([1.0, 0.0, 1.0, 1.0])) is None
    assert directions(np.full((4, 4), np.nan)) is None
