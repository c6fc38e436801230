from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crops_folder import write_volume
from nodule_crops import SPACING, ball, ball_items, write_balls

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.order import SampleKey
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.items import GridDataset, smoothed
from nodule_plugin.insertion.region import MARGIN_MM, painted_region

GRID = Grid((2.0, 0.7, 0.7), (9, 40, 40), (-1024, 976))
RADII, INSIDE = [3.0, 5.0, 9.5], [40.0, -400.0, 100.0]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ball_items(tmp_path_factory.mktemp("balls"), RADII, INSIDE)


def test_a_sample_is_the_crop_on_the_grid(items: list[dict[str, Any]]) -> None:
    dataset = GridDataset(items, GRID)
    sample = dataset[1]
    assert sample["prompt"] == items[1]["prompt"]
    assert sample["diameter_mm"] == pytest.approx(2 * RADII[1], abs=0.7)
    slices = int(ball(RADII[1]).any((0, 1)).sum())
    assert sample["known"].any((1, 2)).tolist() == [abs(at - 4) < slices / 2 for at in range(9)]
    hu = (sample["image"] + 1) * 1000 - 1024
    middle = hu[3:6, 18:22, 18:22]
    assert torch.allclose(middle, torch.full_like(middle, INSIDE[1]), atol=1)
    lung = hu[sample["known"] & ~sample["region"]]
    assert torch.allclose(lung, torch.full_like(lung, -850), atol=1)
    # The edge of a ball has fractions of voxels, their sum its volume.
    assert float(sample["nodule"].sum()) == pytest.approx(ball(RADII[1]).sum(), rel=0.02)


def test_augmented_samples_are_the_same_nodule_elsewhere(items: list[dict[str, Any]]) -> None:
    dataset = GridDataset(items, GRID)
    samples = [dataset[SampleKey(1, seed, 1.0)] for seed in range(12)]
    for sample in samples:
        assert not (sample["region"] & ~sample["known"]).any()
        assert sample["diameter_mm"] == pytest.approx(2 * RADII[1], abs=1.0)
        inside = sample["image"][sample["nodule"] > 0.99]
        assert float(inside.median()) * 1000 - 24 == pytest.approx(INSIDE[1], abs=40)  # a cubic kernel overshoots
    assert len({tuple(sample["nodule"].sum((0, 1)).tolist()) for sample in samples}) == 12
    assert len({sample["prompt"] for sample in samples}) == 2  # both wordings
    again = dataset[SampleKey(1, 3, 1.0)]
    assert all(torch.equal(again[name], samples[3][name]) for name in ("image", "nodule", "region", "known"))
    still = GridDataset(items, GRID, augment=False)
    assert torch.equal(still[SampleKey(1, 3, 1.0)]["image"], still[SampleKey(1, 4, 1.0)]["image"])


def test_nodules_larger_than_the_grid_are_left_out(items: list[dict[str, Any]]) -> None:
    shallow = Grid(GRID.spacing_mm, (4, 40, 40), GRID.window_hu)
    assert [crop.item["id"] for crop in GridDataset(items, shallow).data] == [items[0]["id"]]
    with pytest.raises(InputError, match="none of 1 nodules fits"):
        GridDataset(items[2:], shallow)


def test_a_grid_of_one_slice_lies_within_the_nodule(items: list[dict[str, Any]]) -> None:
    """As a network that sees one slice at a time is trained."""
    dataset = GridDataset(items, Grid(GRID.spacing_mm, (1, 40, 40), GRID.window_hu))
    assert len(dataset) == 3
    samples = [dataset[SampleKey(1, seed, 1.0)] for seed in range(20)]
    areas = [float(sample["nodule"].sum()) for sample in samples]
    assert min(areas) > 0
    assert max(areas) > 1.5 * min(areas)  # from slices near the poles to those through the middle


@pytest.mark.parametrize("fault", ["missing", "empty", "another shape"])
def test_a_mask_that_is_none_is_named(tmp_path: Path, fault: str) -> None:
    items = ball_items(tmp_path, [3.0], [40.0])
    mask = tmp_path / "masks" / Path(items[0]["image"]).name
    if fault == "missing":
        mask.unlink()
    else:
        write_volume(mask, np.zeros((44, 44, 3 if fault == "empty" else 9), np.uint8), SPACING)
    with pytest.raises(InputError, match=rf"{mask.name}"):
        GridDataset(items, GRID)


def test_no_patient_is_in_two_splits(tmp_path: Path) -> None:
    datalist = write_balls(tmp_path, [3.0] * 10, [0.0] * 10, (7, 2, 1))
    patients = [
        {crop.item["patient_id"] for crop in GridDataset(load_datalist(datalist, split), GRID).data}
        for split in ("training", "validation", "test")
    ]
    assert [len(each) for each in patients] == [7, 2, 1]
    assert len(set.union(*patients)) == 10


def test_smoothing_keeps_the_volume() -> None:
    rough = np.zeros(GRID.shape, np.float32)
    rough[3:7, 12:28, 14:24] = 1
    smooth = smoothed(rough, 1.0, GRID)
    assert smooth.sum() == pytest.approx(rough.sum(), rel=0.1)
    assert smooth[5, 12, 14] < smooth[5, 20, 14] == 1


def test_what_is_painted_ends_at_its_margin() -> None:
    nodule = np.zeros(GRID.shape, np.float32)
    nodule[4:6, 20, 20] = 1
    region = painted_region(nodule, GRID.spacing_mm, MARGIN_MM)
    assert region.any((1, 2)).tolist() == [False] * 4 + [True] * 2 + [False] * 3
    rows, columns = np.nonzero(region[4])
    assert np.hypot(rows - 20, columns - 20).max() * 0.7 <= MARGIN_MM
    assert len(rows) * 0.7**2 == pytest.approx(np.pi * MARGIN_MM**2, rel=0.2)
