from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch_fidelity import feature_extractor_inceptionv3 as inception

from nodule_plugin.data.pixels import to_pictures, to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.features import (
    BackboneFeatures,
    InceptionFeatures,
    OpenCLIPImageFeatures,
    backbone_extractors,
)


def test_inception_features_are_those_of_torch_fidelity(inception_weights: Path, images: torch.Tensor) -> None:
    features = InceptionFeatures(inception_weights)
    theirs = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(inception_weights))
    ours = features(images[:2])
    assert ours.shape == (2, 2048)
    assert torch.isfinite(ours).all()
    assert ours.std() > 0
    assert torch.allclose(ours, theirs(to_uint8(images[:2]))[0])


def test_inception_without_weights_says_so() -> None:
    assert InceptionFeatures(None).unavailable == "no weights given"
    with pytest.raises(InputError, match="none were given"):
        InceptionFeatures(None)(torch.zeros(1, 3, 8, 8))


def test_wrong_inception_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pth: no such file"):
        InceptionFeatures(tmp_path / "absent.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: not torch-fidelity's state dict"):
        InceptionFeatures(tmp_path / "other.pth")(torch.zeros(1, 3, 8, 8))


def test_open_clip_features(clip_folder: Path, images: torch.Tensor) -> None:
    features = OpenCLIPImageFeatures(clip_folder, name="tiny nodule encoder")
    assert features(images).shape == (6, 16)
    assert features.id == OpenCLIPImageFeatures(clip_folder, name="another name").id
    assert OpenCLIPImageFeatures(None).unavailable == "no weights given"


def test_eight_bits_are_kept_exactly() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    images = (values.float() / 127.5 - 1).reshape(1, 1, 16, 16).expand(-1, 3, -1, -1)
    assert torch.equal(to_uint8(images)[0, 0].flatten(), values)
    assert to_uint8(torch.full((1, 3, 1, 1), 1.5)).max() == 255


@pytest.mark.parametrize(
    ("images", "named"),
    [(torch.full((1, 3, 2, 2), 255.0), "not 255"), (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "not torch.uint8"),
     (np.zeros((1, 3, 2, 2), np.float32), "not ndarray"), (torch.full((1, 3, 2, 2), -1000.0), "not 1000")],
)  # fmt: skip
def test_images_on_another_scale_are_refused(images: Any, named: str) -> None:
    """Cut off at the ends, grey values of 8 bits would be white, and their scores numbers like any other."""
    for taken in (to_uint8, to_pictures):
        with pytest.raises(InputError, match=f"^images: .*-1 to 1.*{named}"):
            taken(images)


def _resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


def _radimagenet_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ResNet's weights under the names of RadImageNet's files, which count its children and lack the classifier."""
    children = [name for name, _ in _resnet().named_children()]
    parts = {name: name.split(".", 1) for name in state}
    return {
        f"backbone.{children.index(first)}.{rest}": state[name]
        for name, (first, rest) in parts.items()
        if first != "fc"
    }


@pytest.mark.parametrize("style", ["torchvision", "radimagenet", "checkpoint"])
def test_torchvision_backbones_give_their_pooled_features(style: str, tmp_path: Path, images: torch.Tensor) -> None:
    network = _resnet()
    state = network.state_dict()
    saved = {"torchvision": state, "radimagenet": _radimagenet_names(state), "checkpoint": {"state_dict": state}}[style]
    torch.save(saved, tmp_path / "weights.pt")
    features = BackboneFeatures(
        "torchvision/resnet18", tmp_path / "weights.pt", image_size=64, mean=[0.5] * 3, std=[0.5] * 3
    )
    network.fc = torch.nn.Identity()
    expected = network(to_uint8(images[:2]).float() / 127.5 - 1)
    assert torch.allclose(features(images[:2]), expected, atol=1e-4)
    assert features.name == "resnet18 (weights.pt)"


def test_timm_backbones_give_their_pooled_features(tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    (features,) = backbone_extractors([f"timm/resnet18:{tmp_path / 'weights.pt'}"])
    assert features(images[:2]).shape == (2, 512)
    assert torch.isfinite(features(images[:2])).all()


def test_fingerprints_name_weights_and_preprocessing(tmp_path: Path, clip_folder: Path) -> None:
    torch.save(_resnet().state_dict(), tmp_path / "one.pt")
    torch.save(_resnet().state_dict(), tmp_path / "same.pt")
    torch.save({name: value + 1 for name, value in _resnet().state_dict().items()}, tmp_path / "other.pt")
    one, same, other = (
        BackboneFeatures("torchvision/resnet18", tmp_path / f"{name}.pt") for name in ("one", "same", "other")
    )
    resized = BackboneFeatures("torchvision/resnet18", tmp_path / "one.pt", image_size=32)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, resized.fingerprint}) == 3
    assert OpenCLIPImageFeatures(clip_folder).fingerprint == OpenCLIPImageFeatures(clip_folder, name="x").fingerprint


def test_backbones_are_chosen_by_setting(tmp_path: Path, clip_folder: Path) -> None:
    torch.save(_resnet().state_dict(), tmp_path / "weights.pt")
    chosen = backbone_extractors(
        [
            f"open_clip:{clip_folder}",
            {"architecture": "torchvision/resnet18", "weights": str(tmp_path / "weights.pt"), "name": "RadImageNet"},
        ]
    )
    assert [extractor.name for extractor in chosen] == [f"image tower of {clip_folder.name}", "RadImageNet"]
    assert backbone_extractors(None) == []


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet18", "give such as torchvision/resnet50:weights.pt"),
        ("torchvision/absent:FILE", "no such network"),
        ("torchvision/resnet18:/absent.pt", "/absent.pt: no such file"),
        ({"architecture": "timm/resnet18", "weights": "FILE", "depth": 3}, "depth"),
    ],
)
def test_unusable_backbones_are_named(backbone, message: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    file = str(tmp_path / "weights.pt")
    given = backbone | {"weights": file} if isinstance(backbone, dict) else backbone.replace("FILE", file)
    with pytest.raises(InputError, match=message):
        backbone_extractors([given])


def test_weights_of_another_network_are_named(tmp_path: Path, images: torch.Tensor) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: not a state dict of torchvision/resnet18"):
        BackboneFeatures("torchvision/resnet18", tmp_path / "other.pt")(images)
    torch.save(_resnet().state_dict(), tmp_path / "one.pt")
    with pytest.raises(InputError, match="two are called"):
        backbone_extractors([f"torchvision/resnet18:{tmp_path / 'one.pt'}"] * 2)


@pytest.mark.parametrize("architecture", ["torchvision/resnet18", "timm/resnet18", "torchvision/densenet121"])
def test_only_a_classifiers_weights_are_passed_over(architecture: str, tmp_path: Path) -> None:
    library, _, name = architecture.partition("/")
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    state = make(name).state_dict()
    torch.save({key: value for key, value in state.items() if "num_batches_tracked" not in key}, tmp_path / "old.pt")
    features = BackboneFeatures(architecture, tmp_path / "old.pt", image_size=32)(torch.zeros(1, 3, 8, 8))
    assert features.shape == (1, 1024 if "dense" in architecture else 512)
    torch.save(state | {"layer9.0.conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"1 weights unexpected \(layer9\.0\.conv1\.weight\)"):
        BackboneFeatures(architecture, tmp_path / "other.pt")(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("kind", ["inception", "backbone"])
def test_weights_cut_or_a_pointer_are_one_line(kind: str, inception_weights: Path, tmp_path: Path) -> None:
    whole, cut, pointer = tmp_path / "whole.pt", tmp_path / "cut.pt", tmp_path / "pointer.pt"
    torch.save(_resnet().state_dict(), whole)
    content = (inception_weights if kind == "inception" else whole).read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for file, message in ((cut, "cut, damaged or no weights"), (pointer, "git-lfs pointer")):
        features = InceptionFeatures(file) if kind == "inception" else BackboneFeatures("torchvision/resnet18", file)
        with pytest.raises(InputError, match=message) as caught:
            features(torch.zeros(1, 3, 8, 8))
        assert "\n" not in str(caught.value)


def test_inceptions_keys_are_named_when_they_are_others(inception_weights: Path, tmp_path: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    torch.save(state | {"AuxLogits.fc.weight": torch.zeros(1)}, tmp_path / "torchvision.pth")
    with pytest.raises(InputError, match=r"not torch-fidelity's state dict: .*AuxLogits\.fc\.weight"):
        InceptionFeatures(tmp_path / "torchvision.pth")(torch.zeros(1, 3, 8, 8))
