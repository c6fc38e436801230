"""The same numbers as torch-fidelity run by itself, MONAI and monai-generative give."""

from __future__ import annotations

from pathlib import Path

import generative.metrics
import monai.metrics
import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

from nodule_plugin.data.picture import read_picture
from nodule_plugin.metrics.features import InceptionFeatures
from nodule_plugin.metrics.frechet import frechet_distance
from nodule_plugin.metrics.kernel import kernel_distance

COUNT = {"real": 7, "generated": 6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Smooth random RGB pictures, brighter in one of two folders."""
    root = tmp_path_factory.mktemp("pictures")
    for seed, (name, count) in enumerate(COUNT.items()):
        (root / name).mkdir()
        coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed)) * (0.6 + 0.2 * seed)
        smooth = torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 1)
        for place, picture in enumerate((smooth[:, 0] * 255).to(torch.uint8)):
            Image.fromarray(picture.numpy()).convert("RGB").save(root / name / f"{place:02}.png")
    return {name: root / name for name in COUNT}


@pytest.fixture(scope="module")
def features(folders: dict[str, Path], inception_weights: Path) -> dict[str, torch.Tensor]:
    extract = InceptionFeatures(inception_weights)
    return {name: extract(_images(folder)) for name, folder in folders.items()}


def _images(folder: Path) -> torch.Tensor:
    pictures = [torch.from_numpy(read_picture(file)) for file in sorted(folder.iterdir())]
    return torch.stack(pictures)[:, None].expand(-1, 3, -1, -1)


@pytest.fixture(scope="module")
def torch_fidelitys(folders: dict[str, Path], inception_weights: Path) -> dict[str, float]:
    """Its own run, from the pictures to the numbers, on a weights file in its format."""
    return torch_fidelity.calculate_metrics(
        input1=str(folders["real"]),
        input2=str(folders["generated"]),
        feature_extractor_weights_path=str(inception_weights),
        fid=True,
        kid=True,
        kid_subsets=12,
        kid_subset_size=4,
        rng_seed=5,
        batch_size=4,
        cuda=False,
        cache=False,
        verbose=False,
    )


def test_fid_and_kid_of_folders_are_torch_fidelitys(
    features: dict[str, torch.Tensor], torch_fidelitys: dict[str, float]
) -> None:
    pair = features["real"], features["generated"]
    assert torch_fidelitys["frechet_inception_distance"] > 1e-3
    assert frechet_distance(*pair) == pytest.approx(torch_fidelitys["frechet_inception_distance"], rel=1e-4)
    mean, deviation = kernel_distance(*pair, subsets=12, subset_size=4, seed=5)
    assert mean == pytest.approx(torch_fidelitys["kernel_inception_distance_mean"], rel=1e-4)
    assert deviation == pytest.approx(torch_fidelitys["kernel_inception_distance_std"], rel=1e-4)


def test_fid_is_that_of_monai_and_monai_generative(
    features: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Their matrix roots need more images than dimensions: a few of the 2,048 do.
    few = {name: rows[:, :4].double() for name, rows in features.items()}
    expected = frechet_distance(few["real"], few["generated"])
    assert float(monai.metrics.FIDMetric()(few["generated"], few["real"])) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # it was written for NumPy 1
    assert float(generative.metrics.FIDMetric()(few["generated"], few["real"])) == pytest.approx(expected, rel=1e-4)


def test_identical_sets_have_no_distance(features: dict[str, torch.Tensor]) -> None:
    real = features["real"]
    assert frechet_distance(real, real) < 1e-9 * float(real.double().square().sum())
