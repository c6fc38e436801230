from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from nodule_plugin.errors import InputError
from nodule_plugin.metrics import feature_cache
from nodule_plugin.metrics.copies import embedder
from nodule_plugin.metrics.feature_cache import FeatureCache, image_key


class Corner:
    """The first pixels of an image; counts the images it was given."""

    id = name = "corner"
    unavailable: str | None = None

    def __init__(self, fingerprint: str = "a" * 64) -> None:
        self.fingerprint, self.seen = fingerprint, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return images[:, :, 0, 0]


def _images(count: int, side: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(count + side)
    return list(torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw))


def _expected(images: list[torch.Tensor]) -> np.ndarray:
    return torch.stack([image[:, 0, 0].double() / 127.5 - 1 for image in images]).numpy()


def test_each_image_is_encoded_once_whatever_its_size(tmp_path: Path) -> None:
    images = [*_images(70), *_images(5, side=6), *_images(70)[:3]]
    encoder = Corner()
    rows = FeatureCache(tmp_path, encoder).features_of(images)
    assert rows.read() == pytest.approx(_expected(images), abs=1e-6)
    assert encoder.seen == 75
    again = Corner()
    assert FeatureCache(tmp_path, again).features_of(images[::-1]).read() == pytest.approx(
        _expected(images[::-1]), abs=1e-6
    )
    assert again.seen == 0
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_another_extractor_has_its_own_features(tmp_path: Path) -> None:
    images, other = _images(4), Corner("b" * 64)
    FeatureCache(tmp_path, Corner()).features_of(images)
    FeatureCache(tmp_path, other).features_of(images)
    assert other.seen == 4
    assert {path.name for path in tmp_path.iterdir()} == {"a" * 64, "b" * 64}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_noticed_and_made_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = _images(6)
    FeatureCache(tmp_path, Corner()).features_of(images)
    (file,) = tmp_path.rglob("*.npy")
    content = bytearray(file.read_bytes())
    content[-2] ^= 255
    file.write_bytes({"cut": content[:-9], "changed": content, "empty": b""}[damage])
    encoder = Corner()
    with caplog.at_level(logging.WARNING):
        rows = FeatureCache(tmp_path, encoder).features_of(images)
    assert encoder.seen == 6
    assert "is damaged" in caplog.text
    assert rows.read() == pytest.approx(_expected(images), abs=1e-6)


def test_what_other_processes_wrote_is_taken_up(tmp_path: Path) -> None:
    images = _images(6)
    keys = [image_key(image) for image in images]
    one, other = FeatureCache(tmp_path, Corner()), FeatureCache(tmp_path, Corner())
    one.encode(images[:4], keys[:4])
    one.flush()
    other.encode(images[4:], keys[4:])
    other.flush()
    with pytest.raises(KeyError):
        one.rows(keys)
    one.refresh()
    assert one.rows(keys).read() == pytest.approx(_expected(images), abs=1e-6)
    assert len(one) == 6


def test_files_are_written_as_images_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FILE", 64)
    FeatureCache(tmp_path, Corner()).features_of(_images(200))
    assert len(list(tmp_path.rglob("*.npy"))) == 4


def test_rows_are_read_when_asked_for(tmp_path: Path) -> None:
    images = _images(9)
    rows = FeatureCache(tmp_path, Corner()).features_of(images)
    part = rows.take(np.array([7, 2, 2]))
    assert part.shape == (3, 3)
    assert part[1:] == pytest.approx(_expected(images)[[2, 2]], abs=1e-6)
    assert [len(block) for block in rows.blocks(4)] == [4, 4, 1]


def test_features_without_a_cache_are_the_same(tmp_path: Path) -> None:
    images = _images(5)
    for folder in (None, tmp_path):
        assert embedder(Corner(), folder)(images) == pytest.approx(_expected(images), abs=1e-6)


def test_features_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    class Broken(Corner):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 2), torch.nan)

    with pytest.raises(InputError, match="features that are not finite"):
        FeatureCache(tmp_path, Broken()).features_of(_images(2))


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cache_dir: .* cannot be written"):
        FeatureCache(tmp_path / "file", Corner()).features_of(_images(2))
