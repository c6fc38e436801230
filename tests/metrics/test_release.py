from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nodule_plugin.data.evaluation_images import LoadSetImaged
from nodule_plugin.data.generated import FORMAT, NOTICE, load_generated
from nodule_plugin.data.image_set import REAL, TRAINING, ImageRecord, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.planted_copies import planted_copies
from nodule_plugin.metrics.release import write_release


def _smooth(count: int, seed: int) -> list[torch.Tensor]:
    coarse = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    return list((images * 255).to(torch.uint8).expand(-1, 3, -1, -1))


def _write(folder: Path, images: list[torch.Tensor], kind: str) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    items = []
    for place, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{place:02}.png")
        record = ImageRecord(f"{kind}-{place}")
        items.append({"image": str(folder / f"{place:02}.png"), "set": SetKey(kind, kind), "record": record})
    return items


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Training and held-out images, and a generated set whose last two images are copies."""
    root = tmp_path_factory.mktemp("release")
    training = _smooth(12, 0)
    _write(root / "generated" / "png", [*_smooth(6, 2), *planted_copies(training, 2, seed=1)], "generated")
    known = {"prompt": "p", "findings": None, "guidance_scale": 5.0, "seed": 0, "roi_mm": 20.0, "source_id": None}
    images = [{"id": f"i{place}", "image": f"png/{place:02}.png", **known} for place in range(8)]
    manifest = {"format": FORMAT, "version": 1, "synthetic": True, "notice": NOTICE, "window_hu": [-1000, 400]}
    manifest |= {"model": {"base_model": "tiny"}, "scheduler": "DDIM", "num_inference_steps": 5, "images": images}
    (root / "generated" / "manifest.json").write_text(json.dumps(manifest))
    return {
        "generated_dir": root / "generated",
        "training_items": _write(root / "training", training, TRAINING),
        "held_out_items": _write(root / "held_out", _smooth(20, 1), REAL),
        "load": LoadSetImaged(),
        "planted": 10,
    }


def test_copies_are_kept_back_and_named(sets: dict[str, Any], tmp_path: Path) -> None:
    manifest = write_release(**sets, output_dir=tmp_path / "out")
    released = load_generated(tmp_path / "out")
    assert [item["id"] for item in released.items] == [f"i{place}" for place in range(6)]
    assert {path.name for path in (tmp_path / "out" / "png").iterdir()} == {f"{place:02}.png" for place in range(6)}
    original = (sets["generated_dir"] / "png" / "03.png").read_bytes()
    assert (tmp_path / "out" / "png" / "03.png").read_bytes() == original
    release = json.loads(manifest.read_text())["release"]
    assert release["kept"] == 6
    assert {entry["id"] for entry in release["removed"]} == {"i6", "i7"}
    assert all(entry["training"].startswith("training-") for entry in release["removed"])
    assert release["detector"]["misses"]["count"] == 10


def test_what_cannot_be_released_is_said(sets: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training images"):
        write_release(**(sets | {"training_items": []}), output_dir=tmp_path / "out")
    with pytest.raises(InputError, match="holds other files"):
        write_release(**sets, output_dir=sets["generated_dir"])
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        write_release(**(sets | {"generated_dir": sets["generated_dir"] / "png"}), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_audit_above_limits_forbids_a_release_without_a_reason(sets: dict[str, Any], tmp_path: Path) -> None:
    audit = {"format": "nodule-plugin privacy audit", "version": 1, "created": "now", "model": {"weights_sha256": None}}
    audit |= {"verdict": "above limits", "reasons": ["9.0% of patients found."]}
    (tmp_path / "privacy.json").write_text(json.dumps(audit))
    with pytest.raises(InputError, match=r"above limits\. 9\.0% of patients found\. Release nothing, or say why"):
        write_release(**sets, output_dir=tmp_path / "out", privacy=tmp_path / "privacy.json")
    assert not (tmp_path / "out").exists()
    given = {"privacy": tmp_path / "privacy.json", "privacy_override": "all patients agreed"}
    release = json.loads(write_release(**sets, output_dir=tmp_path / "out", **given).read_text())["release"]
    assert release["privacy"]["override"] == "all patients agreed"
    assert release["privacy"]["audit"]["reasons"] == ["9.0% of patients found."]
