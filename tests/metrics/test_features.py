from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inception

from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.features import InceptionFeatures, OpenCLIPImageFeatures


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict with the published one's names and shapes, and random values."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    torch.save(
        {name: 0.05 * torch.randn_like(value.float()).abs() for name, value in network.state_dict().items()}, file
    )
    return file


def test_inception_features_are_those_of_torch_fidelity(inception_weights: Path, images: torch.Tensor) -> None:
    features = InceptionFeatures(inception_weights)
    theirs = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(inception_weights))
    ours = features(images[:2])
    assert ours.shape == (2, features.dim)
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
    assert features.dim == 16
    assert features(images).shape == (6, 16)
    assert features.id == OpenCLIPImageFeatures(clip_folder, name="another name").id
    assert OpenCLIPImageFeatures(None).unavailable == "no weights given"


def test_eight_bits_are_kept_exactly() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    images = (values.float() / 127.5 - 1).reshape(1, 1, 16, 16).expand(-1, 3, -1, -1)
    assert torch.equal(to_uint8(images)[0, 0].flatten(), values)
    assert to_uint8(torch.full((1, 3, 1, 1), 7.0)).max() == 255
