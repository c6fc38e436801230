from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Flip, Resized, ScaleIntensityRanged
from warm import WarmProcess

from nodule_plugin.data.latents import LatentCache, LatentDataset, collate_samples, data_fingerprint
from nodule_plugin.data.order import SampleKey
from nodule_plugin.data.transforms import ORIENTATIONS, nodule_transform, orient
from nodule_plugin.errors import InputError

SHAPE = (8, 2, 2)


def make_cache(folder: Path, fingerprint: str = "a", count: int = 5) -> LatentCache:
    return LatentCache(folder, fingerprint, count, SHAPE)


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    moments = torch.randn(2, *SHAPE)
    assert cache.get(3, 7) is None
    cache.put([(3, 7), (0, 1)], moments)
    for again in (cache, make_cache(tmp_path)):
        assert torch.equal(again.get(3, 7), moments[0])
        assert torch.equal(again.get(0, 1), moments[1])
        assert again.get(3, 6) is None
        assert again.complete == 2 / 40
    assert (tmp_path / "moments.bin").stat().st_size == cache.nbytes == 5 * 8 * 32 * 4


@pytest.mark.parametrize(("fingerprint", "count"), [("b", 5), ("a", 6)])
def test_a_cache_of_something_else_is_thrown_away(tmp_path: Path, fingerprint: str, count: int) -> None:
    make_cache(tmp_path).put([(0, 0)], torch.ones(1, *SHAPE))
    other = make_cache(tmp_path, fingerprint, count)
    assert other.get(0, 0) is None
    assert other.complete == 0


def test_damaged_numbers_are_missing_and_can_be_put_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.put([(0, 0), (0, 1)], torch.ones(2, *SHAPE))
    store = np.memmap(tmp_path / "moments.bin", np.float32, "r+")
    store[3] = 7
    store.flush()
    again = make_cache(tmp_path)
    assert again.get(0, 0) is None
    assert again.get(0, 1) is not None
    again.put([(0, 0)], torch.ones(1, *SHAPE))
    assert torch.equal(make_cache(tmp_path).get(0, 0), torch.ones(SHAPE))


@pytest.mark.parametrize("damage", ["moments.bin", "cache.json", "journal"])
def test_damaged_files_are_noticed(tmp_path: Path, damage: str) -> None:
    make_cache(tmp_path).put([(0, 0), (1, 0)], torch.ones(2, *SHAPE))
    path = next(tmp_path.glob("*.journal")) if damage == "journal" else tmp_path / damage
    path.write_bytes(path.read_bytes()[:-5])
    cache = make_cache(tmp_path)
    assert cache.get(1, 0) is None
    assert (cache.get(0, 0) is not None) == (damage == "journal")
    cache.put([(1, 0)], torch.ones(1, *SHAPE))
    assert make_cache(tmp_path).get(1, 0) is not None


FILL = """
import sys, torch
from nodule_plugin.data.latents import LatentCache
cache = LatentCache(sys.argv[1], "a", 5, (8, 2, 2))
cache.put([(int(sys.argv[2]), 0)], torch.full((1, 8, 2, 2), float(sys.argv[2])))
"""


@pytest.mark.slow
def test_processes_share_one_cache(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    program = tmp_path / "fill.py"
    program.write_text(FILL)
    command = [sys.executable, str(program), str(tmp_path)]
    processes = [WarmProcess([*command, str(number)], tmp_path) for number in range(2)]
    assert [process.finish(120).returncode for process in processes] == [0, 0]
    assert [float(cache.get(number, 0).mean()) for number in range(2)] == [0.0, 1.0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"latent_cache: .*file"):
        make_cache(tmp_path / "file" / "cache")


def test_a_disk_that_is_too_small_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"latent_cache.*GiB free"):
        LatentCache(tmp_path, "a", 10**7, (8, 512, 512))
    assert not list(tmp_path.iterdir())


def read_image(item: dict) -> dict:
    return {"image": torch.arange(3 * 16.0).reshape(3, 4, 4) + 100 * item["number"]}


def make_dataset(cache: LatentCache | None = None, augment: bool = True) -> LatentDataset:
    items = [{"id": f"n{number}", "prompt": f"p{number}", "number": number} for number in range(5)]
    return LatentDataset(items, read_image, cache, augment)


def test_a_sample_is_turned_by_its_own_seed() -> None:
    dataset = make_dataset()
    seen = set()
    for seed in range(60):
        sample = dataset[SampleKey(2, seed, 0.5)]
        plain = read_image({"number": 2})["image"]
        assert torch.equal(sample["image"], orient(plain, sample["orientation"]))
        assert (sample["id"], sample["prompt"], sample["weight"], sample["seed"]) == ("n2", "p2", 0.5, seed)
        seen.add(sample["orientation"])
    assert seen == set(range(ORIENTATIONS))
    assert dataset[SampleKey(2, 5, 1.0)]["orientation"] == dataset[SampleKey(4, 5, 1.0)]["orientation"]


def test_without_augmentation_and_by_number_images_stay_as_they_are() -> None:
    assert {make_dataset(augment=False)[SampleKey(1, seed, 1.0)]["orientation"] for seed in range(20)} == {0}
    assert {make_dataset()[number]["orientation"] for number in range(5)} == {0}
    assert make_dataset().fixed(SampleKey(1, 12, 1.0))["orientation"] == 0


def test_known_moments_spare_the_image(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    dataset = make_dataset(cache, augment=False)
    cache.put([(1, 0)], torch.ones(1, *SHAPE))
    batch = collate_samples([dataset[0], dataset[1]])
    assert batch["moments"][0] is None
    assert batch["image"][0].shape == (3, 4, 4)
    assert torch.equal(batch["moments"][1], torch.ones(SHAPE))
    assert batch["image"][1] is None


def test_the_eight_orientations_are_the_squares_symmetries() -> None:
    image = torch.arange(9.0).reshape(1, 3, 3)
    turned = [orient(image, number) for number in range(ORIENTATIONS)]
    assert torch.equal(turned[0], image)
    assert len({tuple(view.flatten().tolist()) for view in turned}) == 8
    assert all(view[0, 1, 1] == 4 for view in turned)


@pytest.fixture
def items(tmp_path: Path) -> list[dict]:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"12345")
    return [
        {"image": str(path), "slice_index": 1, "centre": [1.0, 2.0], "spacing": [1, 1], "roi_mm": 9.0, "prompt": "a"}
    ]


def transform(size: int = 8, low: float = -1000) -> Compose:
    return Compose([ScaleIntensityRanged("image", low, 400, -1, 1), Resized("image", (size, size)), Flip(0)])


def test_the_fingerprint_follows_pixels_and_transforms_only(items: list[dict]) -> None:
    known = data_fingerprint(items, transform())
    assert data_fingerprint([items[0] | {"prompt": "b"}], transform()) == known
    chains = [
        nodule_transform(8),
        nodule_transform(9),
        nodule_transform(8, (-160, 240)),
        nodule_transform(8, kernel="linear"),
    ]
    others = [
        data_fingerprint(items, transform(size=16)),
        data_fingerprint(items, transform(low=-1350)),
        data_fingerprint(items, Compose(transform().transforms[:2])),
        data_fingerprint([items[0] | {"centre": [1.0, 2.5]}], transform()),
    ]
    others += [data_fingerprint(items, chain) for chain in chains]
    Path(items[0]["image"]).write_bytes(b"123456")
    others.append(data_fingerprint(items, transform()))
    assert len({known, *others}) == 6 + len(chains)
