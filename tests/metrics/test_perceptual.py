from __future__ import annotations

from pathlib import Path

import lpips
import pytest
import torch
import torchvision

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.perceptual import FeatureMapDistance, LPIPSDistance

BACKBONES = {
    "alex": torchvision.models.alexnet,
    "vgg": torchvision.models.vgg16,
    "squeeze": torchvision.models.squeezenet1_1,
}


@pytest.mark.parametrize("net", BACKBONES)
def test_lpips_is_the_package_with_the_backbone_given(net: str, tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[net](weights=None, init_weights=False) if net == "vgg" else BACKBONES[net](weights=None)
    # The classifier, which LPIPS leaves alone, is most of the file.
    features = {name: value for name, value in backbone.state_dict().items() if name.startswith("features.")}
    torch.save(features, tmp_path / "backbone.pth")
    distance = LPIPSDistance(tmp_path / "backbone.pth", net)(images[:3], images[3:])
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    for name, parameter in reference.net.named_parameters():
        parameter.data = backbone.get_parameter("features." + name.split(".", 1)[1]).data
    assert distance.tolist() == pytest.approx(reference(images[:3], images[3:]).flatten().tolist(), abs=1e-6, rel=1e-6)
    assert LPIPSDistance(tmp_path / "backbone.pth", net)(images, images).abs().max() == 0


def test_lpips_names_its_backbone_and_what_is_missing(tmp_path: Path, images: torch.Tensor) -> None:
    assert LPIPSDistance(net="vgg").name == "LPIPS v0.1 (vgg)"
    assert LPIPSDistance().unavailable == "no weights given"
    with pytest.raises(InputError, match="choose alex, vgg or squeeze"):
        LPIPSDistance(net="resnet")
    with pytest.raises(InputError, match="no such file"):
        LPIPSDistance(tmp_path / "absent.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: not torchvision's state dict"):
        LPIPSDistance(tmp_path / "other.pth")(images, images)


def test_lpips_takes_the_backbones_weights_whole_and_nothing_else(tmp_path: Path, images: torch.Tensor) -> None:
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    for name, given, message in (
        ("more", state | {"features.99.weight": torch.zeros(1)}, r"1 weights unexpected \(features\.99\.weight\)"),
        ("less", {n: w for n, w in state.items() if "features.3." not in n}, r"missing \(slice2\.3\.squeeze\.weight"),
    ):
        torch.save(given, tmp_path / name)
        with pytest.raises(InputError, match=message):
            LPIPSDistance(tmp_path / name, "squeeze")(images, images)
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="a git-lfs pointer in the place of the weights"):
        LPIPSDistance(tmp_path / "pointer", "squeeze")(images, images)


def test_feature_map_distance_is_a_distance(clip_folder: Path, images: torch.Tensor) -> None:
    distance = FeatureMapDistance(clip_folder)
    assert distance(images, images).abs().max() == 0
    assert torch.allclose(distance(images[:3], images[3:]), distance(images[3:], images[:3]))
    # Five stages, each at most 4: the squared length of the difference of two unit vectors.
    assert 0 < distance(images[:3], images[3:]).min() < distance(images[:3], images[3:]).max() < 20
    near = distance(images, (images + 0.02).clamp(-1, 1)).mean()
    assert near < distance(images, images.flip(0)).mean()
