from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nodule_crops import ball_items
from tiny_inpainter import GRID, make_tiny_inpainter
from tiny_sd import make_tiny_sd

from nodule_plugin.data.latents import collate_samples
from nodule_plugin.data.order import SampleKey, sample_seed
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.items import GridDataset
from nodule_plugin.insertion.network import PixelAutoencoder, conditions, encode_slices, slices_of
from nodule_plugin.insertion.sources import Asked
from nodule_plugin.insertion.training import InpaintingLoss, InpaintingPrepareBatch, InpaintingTarget

PROMPT = "The nodule is round in shape, solid internally, with well-defined margins."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_inpainter(tmp_path_factory.mktemp("inpainter"))


@pytest.fixture(scope="module")
def inpainter(folder: Path) -> NoduleInpainter:
    return NoduleInpainter.from_folder(folder)


def host_and_mask(grid: Grid = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    host = -850 + 30 * torch.randn(grid.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(grid.shape)
    mask[grid.shape[0] // 2 - 1 : grid.shape[0] // 2 + 1, 5:11, 5:11] = 1
    return host, mask


def paint(inpainter: NoduleInpainter, **changes: Any) -> torch.Tensor:
    host, mask = host_and_mask(inpainter.grid)
    host, mask = changes.pop("host_hu", host), changes.pop("mask", mask)
    return inpainter(host, mask, replace(Asked(PROMPT, 6.0, guidance_scale=1.5, steps=3, seed=5), **changes))


def test_prompts_are_not_kept(inpainter: NoduleInpainter) -> None:
    paint(inpainter, prompt="a prompt of one visitor")
    assert inpainter.conditioner._known == {}


def test_what_is_not_painted_is_the_host(inpainter: NoduleInpainter) -> None:
    host, mask = host_and_mask()
    painted = paint(inpainter)
    changed = painted != host
    assert changed[mask > 0].all()
    assert changed.any((1, 2)).tolist() == [False, True, True, False]
    rows, columns = np.nonzero(changed[2].numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 12, 3, 12)  # 2.5 mm around, in voxels of 1
    low, high = inpainter.grid.window_hu
    assert (painted[changed] >= low).all()
    assert (painted[changed] <= high).all()


def test_a_seed_and_the_requests_words_decide(folder: Path, inpainter: NoduleInpainter) -> None:
    first = paint(inpainter)
    again = NoduleInpainter.from_folder(folder)
    assert torch.equal(first, paint(again))
    assert inpainter.model == again.model
    for change in (
        {"seed": 6},
        {"prompt": "ground-glass"},
        {"diameter_mm": 9.0},
        {"guidance_scale": 3.0},
        {"steps": 4},
    ):
        assert not torch.equal(first, paint(inpainter, **change)), change


def test_the_model_says_what_it_is(inpainter: NoduleInpainter) -> None:
    assert inpainter.grid == GRID
    assert set(inpainter.model) == {"name", "hash", "revision"}
    assert len(inpainter.model["hash"]) == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host_hu": torch.zeros(4, 16, 15)}, r"host_hu: the model's grid \(4, 16, 16\) is needed, not \(4, 16, 15\)"),
        ({"mask": torch.zeros(4, 16, 16)}, "mask: no voxel holds nodule"),
        ({"host_hu": torch.full((4, 16, 16), torch.nan)}, "host_hu: there are values that are not finite"),
        ({"guidance_scale": -1.0}, "guidance"),
        ({"steps": 0}, "steps"),
    ],
)
def test_requests_that_make_no_sense_are_refused(inpainter: NoduleInpainter, change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        paint(inpainter, **change)


def test_a_model_for_text_alone_is_refused(tmp_path: Path) -> None:
    make_tiny_sd(tmp_path / "base", levels=2)
    (tmp_path / "base" / "grid.json").write_text(json.dumps(asdict(GRID)))
    with pytest.raises(InputError, match="4 input channels for 4 of output; give an inpainting model"):
        NoduleInpainter.from_folder(tmp_path / "base")


def test_stable_diffusions_nine_channels(tmp_path: Path) -> None:
    """One slice at a time, through its own autoencoder, as many as the grid is deep."""
    grid = Grid((2.0, 1.0, 1.0), (1, 32, 32), (-1000, 400))
    folder = make_tiny_inpainter(tmp_path / "sd", grid, slices=1)
    inpainter = NoduleInpainter.from_folder(folder, depth=4)
    assert slices_of(inpainter.network.unet.config) == 1
    host, _ = host_and_mask(inpainter.grid)
    painted = paint(inpainter)
    assert painted.shape == (4, 32, 32)
    assert (painted != host).any((1, 2)).tolist() == [False, True, True, False]
    assert torch.equal(paint(inpainter), painted)


def test_pixels_come_back_from_their_latents() -> None:
    vae = PixelAutoencoder(3, -0.6, 2.8)
    slices = torch.rand(2, 3, 8, 6) * 2 - 1
    latents = encode_slices(vae, slices)
    assert latents.shape == (2, 12, 4, 3)
    torch.testing.assert_close(vae.decode(latents / 2.8 - 0.6)[0], slices)


def test_what_the_network_is_told_does_not_show_what_it_is_to_paint() -> None:
    vae = PixelAutoencoder(2)
    nodule, known = torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8, dtype=torch.bool)
    nodule[:, :, 2:6, 2:6] = 1
    region = nodule > 0
    known[:, 1] = False
    images = [torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    images[1][region & known] = 0.9
    images[1][~known] = -0.9
    first, second = (conditions(vae, image, nodule, region, known) for image in images)
    assert torch.equal(first.known, second.known)
    assert torch.equal(first.mask, second.mask)
    assert first.mask.shape == (1, 2, 4, 4)
    assert first.mask.unique().tolist() == [0, 0.5, 1]
    assert first.painted.sum() == 4 * 4  # positions of the first slice, in each channel of it
    assert first.painted[:, 4:].sum() == 0


def test_only_what_is_painted_counts() -> None:
    value = torch.zeros(2, 2, 4, 4)
    painted = torch.zeros(2, 2, 4, 4)
    painted[:, 0, :2] = 1
    prediction = torch.full_like(value, 9.0)
    prediction[0, 0, :2], prediction[1, 0, :2] = 1, 2
    target = InpaintingTarget(value, painted, torch.tensor([0.5, 0.5]))
    assert float(InpaintingLoss()(prediction, target)) == pytest.approx(0.5 * 1 + 0.5 * 4)


def test_a_model_that_knows_two_nodules_by_heart_paints_them(folder: Path, tmp_path: Path) -> None:
    dataset = GridDataset(ball_items(tmp_path, [4.0, 4.0], [50.0, -450.0]), GRID)
    samples = [dataset[0], dataset[1] | {"prompt": "The nodule is round in shape, ground-glass internally."}]
    inpainter = NoduleInpainter.from_folder(folder)
    network = inpainter.network.train().requires_grad_(True)
    prepare = InpaintingPrepareBatch(inpainter.vae, inpainter.conditioner, inpainter.noise_scheduler)
    optimizer, loss = torch.optim.AdamW(network.parameters(), lr=3e-3), InpaintingLoss()
    for step in range(120):
        keys = [SampleKey(item, sample_seed(step, item, copy), 1 / 4) for item in (0, 1) for copy in (0, 1)]
        batch = collate_samples([samples[key.item] | {"seed": key.seed, "weight": key.weight} for key in keys])
        noisy, target, _, told = prepare(batch)
        optimizer.zero_grad()
        loss(network(noisy, **told), target).backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    for sample, inside in zip(samples, (50, -450)):
        host = torch.full(GRID.shape, -850.0)
        asked = Asked(sample["prompt"], sample["diameter_mm"], guidance_scale=1.0, steps=8, seed=3)
        painted = inpainter(host, sample["nodule"], asked)
        expected = (sample["image"] + 1) * 1000 - 1024
        middle = painted[1:3, 6:10, 6:10]
        assert float(middle.mean()) == pytest.approx(inside, abs=120)
        assert float((painted - expected)[sample["region"]].abs().mean()) < 120
