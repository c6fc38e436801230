"""From an item to pixels: the grid is the region's own, its edge leaves no trace, and whoever looks sees the same."""

from __future__ import annotations

import io
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from small_models.examples import load_examples
from torch.nn.functional import interpolate

from nodule_plugin.data.crops import nodules_from_crops
from nodule_plugin.data.datalist import build_datalist, datalist_kernel, load_datalist, write_datalist
from nodule_plugin.data.evaluation_images import LoadSetImaged, training_items
from nodule_plugin.data.latents import data_fingerprint
from nodule_plugin.data.nodule import NoduleSet
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.transforms import KERNELS, chain_id, chain_kernel, nodule_transform, read_slice, resample_roi
from nodule_plugin.data.window import hu_to_unit
from nodule_plugin.downstream.tasks import TASKS, load_pictures
from nodule_plugin.errors import InputError
from nodule_plugin.lidc.phantom import load_subjects, write_phantom_crops
from nodule_plugin.report import data_page

TORCH_MODES = {"linear": "bilinear", "cubic": "bicubic"}
SIZE = 64
Item = dict[str, Any]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> NoduleSet:
    subjects = [subject for subject in load_subjects() if subject.diameter_mm < 14][:40]
    folder = write_phantom_crops(tmp_path_factory.mktemp("phantoms") / "crops", nodules=24, seed=3, subjects=subjects)
    return nodules_from_crops(folder)


@pytest.fixture(scope="module")
def slice_hu() -> np.ndarray:
    """A slice of rows and columns that are told apart by noise, all within the window."""
    return np.random.default_rng(0).uniform(-1000, 400, (60, 72)).astype(np.float32)


def items_of(nodules: NoduleSet, file: Path, kernel: str = "cubic", split: str = "training") -> list[Item]:
    write_datalist(build_datalist(nodules, kernel=kernel), file)
    return load_datalist(file, split, drop_padded=True)


def crop_then_enlarge(item: Item) -> np.ndarray:
    """What version 1 of the chain did: nothing beyond the region is there when it is enlarged."""
    top, bottom, left, right = roi_bounds(tuple(item["centre"]), tuple(item["spacing"]), item["roi_mm"])
    unit = hu_to_unit(read_slice(Path(item["image"]), item["slice_index"])[top:bottom, left:right])
    return interpolate(torch.from_numpy(unit)[None, None], (SIZE, SIZE), mode="bilinear", antialias=True)[0, 0].numpy()


def edge_ratio(images: list[np.ndarray]) -> float:
    """The mean squared step between the two outermost rows (columns), over that between the 4th and the 10th."""
    sides = [side for image in images for side in (image, image[::-1], image.T, image.T[::-1])]
    steps = np.array([np.square(np.diff(side[:11], axis=0)).mean(axis=1) for side in sides])
    return float(steps[:, 0].mean() / steps[:, 3:].mean())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("bounds", "size"),
    [
        ((10, 35, 20, 45), (64, 64)),
        ((5, 55, 8, 58), (32, 32)),
        ((10, 30, 12, 32), (64, 48)),
        ((8, 40, 9, 41), (32, 32)),
    ],
)
def test_inside_a_region_pixels_are_those_of_torch(
    slice_hu: np.ndarray, bounds: tuple[int, int, int, int], size: tuple[int, int], kernel: str
) -> None:
    top, bottom, left, right = bounds
    region = torch.from_numpy(hu_to_unit(slice_hu))[None, None, top:bottom, left:right]
    expected = interpolate(region, size, mode=TORCH_MODES[kernel], antialias=True)[0, 0].clamp(-1, 1).numpy()
    inside = (slice(8, -8),) * 2  # where the kernel does not reach the region's edge
    assert resample_roi(slice_hu, bounds, size, kernel=kernel)[inside] == pytest.approx(expected[inside], abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("side", "margin", "scale"), [(16, 4, 4), (30, 10, 0.5)])
def test_the_grid_is_the_regions_own_and_nothing_happens_at_its_edge(
    slice_hu: np.ndarray, side: int, margin: int, scale: float, kernel: str
) -> None:
    def cut(margin: int) -> np.ndarray:
        bounds = (15 - margin, 15 + side + margin, 20 - margin, 20 + side + margin)
        pixels = int((side + 2 * margin) * scale)
        return resample_roi(slice_hu, bounds, (pixels, pixels), kernel=kernel)

    around = int(margin * scale)
    assert cut(0) == pytest.approx(cut(margin)[around:-around, around:-around], abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_where_the_slice_ends_no_pixel_is_invented(kernel: str) -> None:
    hu = np.full((20, 24), -300, np.float32)
    assert resample_roi(hu, (0, 12, 12, 24), (64, 64), kernel=kernel) == pytest.approx(0, abs=1e-6)
    hu[:, 12:] = 3000
    metal, bone = (resample_roi(np.minimum(hu, top), (4, 16, 6, 18), (64, 64), kernel=kernel) for top in (3000, 400))
    assert np.array_equal(metal, bone), "what lies above the window must not darken its neighbours more than its end"
    assert metal.max() == 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("source", ["phantoms", "real_crops"])
def test_the_edge_of_an_image_is_like_its_inside(
    source: str, kernel: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    items = items_of(request.getfixturevalue(source), tmp_path / "list.json", kernel)[:150]
    cut = nodule_transform(SIZE, kernel=kernel)
    assert edge_ratio([cut(item)["image"][0].numpy() for item in items]) == pytest.approx(1, abs=0.25)
    assert edge_ratio([crop_then_enlarge(item) for item in items]) < 0.5, "this is what the test is there to see"


@pytest.mark.parametrize("kernel", KERNELS)
def test_whoever_looks_at_an_item_sees_the_same_pixels(
    phantoms: NoduleSet, kernel: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datalist = tmp_path / "list.json"
    items = items_of(phantoms, datalist, kernel)
    expected = nodule_transform(SIZE, kernel=kernel)(items[0])["image"]
    assert not torch.equal(
        expected, nodule_transform(SIZE, kernel="linear" if kernel == "cubic" else "cubic")(items[0])["image"]
    )

    def of_config(name: str, key: str) -> Any:
        parser = ConfigParser()
        parser.read_config(str(repository / "bundle" / "configs" / f"{name}.json"))
        parser["datalist"] = str(datalist)
        parser["image_size"] = SIZE if name == "train" else [SIZE, SIZE]
        return parser.get_parsed_content(key)

    listed = training_items(datalist)
    for name in ("evaluate", "downstream", "release"):
        load = of_config(name, "load_image")
        assert torch.equal(load(listed[0])["image"], expected), name
    for key in ("train#preprocessing", "validate#preprocessing"):
        assert torch.equal(of_config("train", key)(items[0])["image"], expected), key
    taught = load_pictures(listed[:1], LoadSetImaged((SIZE, SIZE), kernel=datalist_kernel(datalist)), TASKS, "")
    assert torch.equal(taught.images[0], expected[:1])
    assert torch.equal(load_examples(datalist, "training").images[0], expected)
    monkeypatch.setattr(data_page, "SAMPLE_PIXELS", SIZE)
    page = data_page.render_data_page(datalist, samples=len(items), seed=0)
    pictures = [part.partition('"')[0] for part in page.split("data:image/png;base64,")[1:]]
    shown = [np.asarray(Image.open(io.BytesIO(b64decode(picture)))) for picture in pictures]
    assert any(np.array_equal(picture, to_uint8(expected[None])[0, 0].numpy()) for picture in shown)


def test_a_chain_has_a_name_and_files_of_before_it_have_the_default(tmp_path: Path) -> None:
    assert [chain_kernel(chain_id(kernel)) for kernel in KERNELS] == list(KERNELS)
    assert chain_kernel(None) == datalist_kernel(None) == "cubic"
    with pytest.raises(InputError, match="resample_kernel: there is no 'nearest'; choose one of linear, cubic"):
        nodule_transform(SIZE, kernel="nearest")
    for size in ("64", 0, [64, 1.5]):
        with pytest.raises(InputError, match="image_size: a whole number from 1 to 4096 is needed"):
            nodule_transform(size)
    file = write_datalist({"chain": "roi-linear-1"}, tmp_path / "list.json")
    with pytest.raises(InputError, match=r"list\.json: chain: .*'roi-linear-1' .*run prepare again"):
        datalist_kernel(file)


def test_latents_of_another_chain_are_not_taken_for_ours(phantoms: NoduleSet, tmp_path: Path) -> None:
    items = items_of(phantoms, tmp_path / "list.json")
    first, again, other = (
        data_fingerprint(items, nodule_transform(SIZE, kernel=k)) for k in ("cubic", "cubic", "linear")
    )
    assert first == again != other
