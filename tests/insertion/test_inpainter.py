from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from nodule_crops import ball_items
from tiny_sd import make_tiny_sd

from nodule_plugin.data.latents import collate_samples
from nodule_plugin.data.order import SampleKey, sample_seed
from nodule_plugin.errors import InputError
from nodule_plugin.insertion.grid import Grid
from nodule_plugin.insertion.inpainter import NoduleInpainter
from nodule_plugin.insertion.items import GridDataset
from nodule_plugin.insertion.network import PixelAutoencoder, conditions, encode_slices, slices_of
from nodule_plugin.insertion.training import InpaintingLoss, InpaintingPrepareBatch, InpaintingTarget
from nodule_plugin.tiny.base_model import build_scheduler

GRID = Grid((2.0, 1.0, 1.0), (6, 24, 24), (-1024, 976))
PROMPT = "The nodule is round in shape, solid internally, with well-defined margins."


def make_tiny_inpainter(folder: Path, grid: Grid = GRID, slices: int = 6) -> Path:
    """A model of several slices at once, or with ``slices`` 1 of Stable Diffusion's layout, with random weights."""
    make_tiny_sd(folder, levels=2, inpainting=True)
    if slices > 1:
        torch.manual_seed(0)
        UNet2DConditionModel(
            in_channels=9 * slices,
            out_channels=4 * slices,
            sample_size=12,
            block_out_channels=(32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=2,
            cross_attention_dim=16,
            class_embed_type="timestep",
        ).save_pretrained(folder / "unet")
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        PixelAutoencoder(slices, -0.5, 2.0).save_pretrained(folder / "vae")
        build_scheduler().save_pretrained(folder / "scheduler")
    (folder / "grid.json").write_text(json.dumps(asdict(grid)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_inpainter(tmp_path_factory.mktemp("inpainter"))


def host_and_mask(grid: Grid = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    host = -850 + 30 * torch.randn(grid.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(grid.shape)
    mask[grid.shape[0] // 2 - 1 : grid.shape[0] // 2 + 1, 9:15, 9:15] = 1
    return host, mask


def paint(inpainter: NoduleInpainter, **changes: Any) -> torch.Tensor:
    host, mask = host_and_mask(inpainter.grid)
    request = {"host_hu": host, "mask": mask, "prompt": PROMPT, "diameter_mm": 6.0}
    return inpainter(**request | {"guidance_scale": 1.5, "steps": 3, "seed": 5} | changes)


def test_what_is_not_painted_is_the_host(folder: Path) -> None:
    inpainter = NoduleInpainter.from_folder(folder)
    host, mask = host_and_mask()
    painted = paint(inpainter)
    changed = painted != host
    assert changed[mask > 0].all()
    assert changed.any((1, 2)).tolist() == [False, False, True, True, False, False]
    rows, columns = np.nonzero(changed[2].numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 16, 7, 16)  # 2.5 mm around, in voxels of 1
    low, high = inpainter.window_hu
    assert (painted[changed] >= low).all()
    assert (painted[changed] <= high).all()


def test_a_seed_and_the_requests_words_decide(folder: Path) -> None:
    inpainter = NoduleInpainter.from_folder(folder)
    first = paint(inpainter)
    assert torch.equal(first, paint(NoduleInpainter.from_folder(folder)))
    for change in (
        {"seed": 6},
        {"prompt": "ground-glass"},
        {"diameter_mm": 9.0},
        {"guidance_scale": 3.0},
        {"steps": 4},
    ):
        assert not torch.equal(first, paint(inpainter, **change)), change


def test_the_model_says_what_it_is(folder: Path) -> None:
    inpainter = NoduleInpainter.from_folder(folder)
    assert (inpainter.grid_spacing_mm, inpainter.grid_shape) == (GRID.spacing_mm, GRID.shape)
    assert inpainter.window_hu == GRID.window_hu
    assert set(inpainter.model) == {"name", "hash", "revision"}
    assert inpainter.model["hash"] == NoduleInpainter.from_folder(folder).model["hash"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host_hu": torch.zeros(6, 24, 23)}, r"host_hu: the model's grid \(6, 24, 24\) is needed, not \(6, 24, 23\)"),
        ({"mask": torch.zeros(6, 24, 24)}, "mask: no voxel holds nodule"),
        ({"host_hu": torch.full((6, 24, 24), torch.nan)}, "host_hu: there are values that are not finite"),
        ({"guidance_scale": -1.0}, "guidance"),
        ({"steps": 0}, "steps"),
    ],
)
def test_requests_that_make_no_sense_are_refused(folder: Path, change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        paint(NoduleInpainter.from_folder(folder), **change)


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
    host, mask = host_and_mask(inpainter.grid)
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
    assert first.painted.sum() == 4 * 4  # 4 positions of the first slice, in each of the 4 channels that hold its pixels
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
    dataset = GridDataset(ball_items(tmp_path, [5.0, 5.0], [50.0, -450.0]), GRID)
    samples = [dataset[0], dataset[1] | {"prompt": "The nodule is round in shape, ground-glass internally."}]
    inpainter = NoduleInpainter.from_folder(folder)
    network = inpainter.network.train().requires_grad_(True)
    prepare = InpaintingPrepareBatch(inpainter.vae, inpainter.conditioner, inpainter.noise_scheduler)
    optimizer, loss = torch.optim.AdamW(network.parameters(), lr=3e-3), InpaintingLoss()
    for step in range(160):
        keys = [SampleKey(item, sample_seed(step, item, copy), 1 / 8) for item in (0, 1) for copy in range(4)]
        batch = collate_samples([samples[key.item] | {"seed": key.seed, "weight": key.weight} for key in keys])
        noisy, target, _, told = prepare(batch)
        optimizer.zero_grad()
        loss(network(noisy, **told), target).backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    for sample, inside in zip(samples, (50, -450)):
        host = torch.full(GRID.shape, -850.0)
        asked = {"prompt": sample["prompt"], "diameter_mm": sample["diameter_mm"], "seed": 3}
        painted = inpainter(host, sample["nodule"], **asked, guidance_scale=1.0, steps=8)
        expected = (sample["image"] + 1) * 1000 - 1024
        middle = painted[2:4, 10:14, 10:14]
        assert float(middle.mean()) == pytest.approx(inside, abs=60)
        assert float((painted - expected)[sample["region"]].abs().mean()) < 80
