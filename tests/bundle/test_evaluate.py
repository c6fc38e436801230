from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from bundle_command import run_config
from PIL import Image
from tiny_clip import make_tiny_biomedclip
from tiny_inception import make_inception

from nodule_plugin.data.generated import FORMAT, NOTICE
from nodule_plugin.metrics.alignment import BiomedCLIPScorer


def _write_set(folder: Path, seed: int, scales: tuple[float, ...]) -> Path:
    """Pictures of a blurred disc, larger for one of two prompts, with a manifest."""
    draw = np.random.default_rng(seed)
    folder.mkdir()
    images = []
    row, column = np.mgrid[:64, :64] - 31.5
    for scale in scales:
        for index in range(8):
            radius = (8, 16)[index % 2] + draw.normal()
            disc = 1 / (1 + np.exp(np.hypot(row, column) - radius))
            name = f"{scale:g}-{index}.png"
            grey = 40 + 150 * disc + draw.normal(0, 5 * scale, disc.shape)
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / name)
            known = {"findings": None, "seed": index, "roi_mm": 20.0, "source_id": None}
            prompt = ("The nodule is round in shape.", "The nodule is oval in shape.")[index % 2]
            images.append({"id": name, "image": name, "prompt": prompt, "guidance_scale": scale, **known})
    manifest = {"format": FORMAT, "version": 1, "synthetic": True, "notice": NOTICE, "window_hu": [-1000, 400]}
    manifest |= {"model": {"base_model": "tiny"}, "scheduler": "DDIM", "num_inference_steps": 5, "images": images}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    real, generated = _write_set(root / "real", 0, (1.0,)), _write_set(root / "generated", 1, (1.0, 5.0))
    return {"real_dir": real, "generated_dir": generated}


def test_the_documented_command_with_every_published_metric(
    repository: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    biomedclip = make_tiny_biomedclip(tmp_path / "biomedclip")
    output = tmp_path / "out"
    ran = run_config(
        repository,
        "evaluate",
        **sets,
        output_dir=output,
        inception_weights=make_inception(tmp_path / "inception.pth"),
        lpips_weights=tmp_path / "alexnet.pth",
        clip_model=repository / "bundle" / "models" / "tiny_scorer",
        biomedclip_model=biomedclip,
        noise_images=4,
        error_repeats=3,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    results = json.loads((output / "metrics.json").read_text())
    assert [(row["kind"], row["guidance_scale"]) for row in results["rows"]] == [
        *[("real", None), ("control", None), ("generated", 1.0), ("generated", 5.0)],
        *[("control", None), ("control", None)],
    ]
    clean, noisy = (row["values"] for row in results["rows"][2:4])
    assert clean["kd_tiny"]["value"] < noisy["kd_tiny"]["value"]
    assert clean["fd_tiny"]["value"] < noisy["fd_tiny"]["value"]
    published = [measure["key"] for measure in results["measures"] if measure["group"] == "published"]
    assert set(published) == {
        *("fid", "fid_infinity", "kid", "cmmd", "lpips", "lpips_diversity", "clip_score", "bioclip_score")
    }
    assert [key for key in published if clean[key]["value"] is None] == ["fid_infinity"]
    # Distances stand between a floor and a ceiling, scores beside those of real images and of shuffled prompts.
    floor, ceilings = results["rows"][1]["values"], [row["values"] for row in results["rows"][4:]]
    for key in ("fid", "kid", "cmmd", "lpips"):
        assert floor[key]["value"] is not None
        assert any(values[key]["value"] is not None for values in ceilings), key
    for key in ("clip_score", "bioclip_score"):
        assert results["rows"][0]["values"][key]["value"] is not None
        assert clean[key]["shuffled"] is not None
    # The same model under two names gives the same score: the loading code is one.
    assert clean["clip_score"]["value"] == pytest.approx(clean["clip_score_tiny"]["value"])
    # BiomedCLIP's is what the scorer gives alone.
    folder = sets["generated_dir"]
    images = [item for item in json.loads((folder / "manifest.json").read_text())["images"] if item["id"] < "2"]
    pictures = [Image.open(folder / item["image"]) for item in images]
    alone = BiomedCLIPScorer(biomedclip).score(pictures, [item["prompt"] for item in images])
    assert clean["bioclip_score"]["value"] == pytest.approx(alone, abs=1e-5)
    assert {path.name for path in output.iterdir()} >= {"metrics.csv", "metrics.md", "metrics.png", "report.html"}


def test_any_two_folders_of_pictures_with_every_network(repository: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, count in (("a", 7), ("b", 6)):
        (tmp_path / name).mkdir()
        for place in range(count):
            grey = draw.integers(0, 256, (40, 40), dtype=np.uint8)
            Image.fromarray(grey).convert("RGB").save(tmp_path / name / f"{place}.png")
    prompts = [{"image": f"{place}.png", "prompt": ("round", "oval")[place % 2]} for place in range(6)]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps({"images": prompts}))
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pt")
    tiny = repository / "bundle" / "models" / "tiny_scorer"
    ran = run_config(
        repository,
        "evaluate",
        real_dir=tmp_path / "a",
        generated_dir=tmp_path / "b",
        output_dir=tmp_path / "out",
        inception_weights=make_inception(tmp_path / "inception.pth"),
        clip_model=tiny,
        fid_backbones=f"['torchvision/resnet18:{tmp_path / 'resnet18.pt'}','open_clip:{tiny}']",
        noise_images=2,
        error_repeats=3,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (generated,) = (row["values"] for row in results["rows"] if row["kind"] == "generated")
    computed = {measure["name"] for measure in results["measures"] if generated[measure["key"]]["value"] is not None}
    networks = ("resnet18 (resnet18.pt)", "image tower of tiny_scorer")
    assert computed >= {"FID", "KID", "CMMD", *(f"{kind} ({name})" for kind in ("FD", "KD") for name in networks)}
    # One network under two names gives one number.
    assert generated["fd_backbone2"]["value"] == generated["fd_tiny"]["value"]
    assert generated["fid"]["ci95"] is not None
    assert generated["fid_infinity"]["reason"] == "6 images, 4098 needed (twice the 2048 features)"
    assert generated["copies"]["reason"] == "no training images given"
    # One folder's manifest gives prompts, the other has none.
    assert generated["clip_score"]["count"] == 6
    assert results["rows"][0]["values"]["clip_score"]["reason"] == "images without prompts"
    ceiling = next(row["values"] for row in results["rows"] if row["ceiling"])
    assert ceiling["fid"]["value"] is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"real_dir": "/absent"}, "error: real images: there is no folder /absent"),
        ({"generated_dir": "/absent"}, "error: generated set: there is no folder /absent"),
        ({"fid_backbones": "['timm/resnet18:/absent.pt']"}, "error: backbone weights /absent.pt: no such file"),
    ],
)
def test_wrong_settings_end_with_one_line(
    repository: Path, sets: dict[str, Path], tmp_path: Path, wrong: dict[str, str], message: str
) -> None:
    ran = run_config(repository, "evaluate", **(sets | {"output_dir": tmp_path / "out", "noise_images": 2} | wrong))
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()
