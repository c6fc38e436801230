from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from nodule_plugin.data.feature_rows import BLOCK, FeatureRows
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.distribution import FrechetDistanceMetric, KernelDistanceMetric
from nodule_plugin.metrics.frechet import frechet_distance, frechet_error
from nodule_plugin.metrics.kernel import cmmd, kernel_distance, kernel_error, squared_mmd
from nodule_plugin.metrics.two_samples import half_sample_error


def _features(count: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing / dim**0.5 + shift


def _torch_fidelity_fid(real: torch.Tensor, fake: torch.Tensor) -> float:
    statistics = [fid_features_to_statistics(features) for features in (real, fake)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


@pytest.mark.parametrize(("n", "m", "dim"), [(300, 200, 16), (50, 60, 64), (40, 500, 64), (5, 5, 32)])
def test_frechet_distance_equals_torch_fidelity(n: int, m: int, dim: int) -> None:
    real, fake = _features(n, dim, 0), _features(m, dim, 1, shift=0.2)
    assert frechet_distance(real, fake) == pytest.approx(_torch_fidelity_fid(real, fake), rel=1e-4)


def test_frechet_distance_of_known_gaussians() -> None:
    # Diagonal covariances and exact moments: the formula can be written out.
    corners = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]) * np.sqrt(3 / 4)
    expected = 3.0**2 + (2.0 - 1.0) ** 2
    assert frechet_distance(corners, corners * [2.0, 1.0] + [0.0, 3.0]) == pytest.approx(expected)
    assert frechet_distance(corners, corners) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("n", "m", "size"), [(120, 90, 40), (120, 90, 90), (200, 50, 50)])
def test_kernel_distance_draws_and_counts_as_torch_fidelity(n: int, m: int, size: int) -> None:
    real, fake = _features(n, 24, 0), _features(m, 24, 1, shift=0.3)
    theirs = kid_features_to_metric(real, fake, kid_subsets=20, kid_subset_size=size, rng_seed=3, verbose=False)
    ours = kernel_distance(real, fake, subsets=20, subset_size=size, seed=3)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


def test_kernel_distance_takes_the_smaller_set_where_subsets_would_be_too_large() -> None:
    real, fake = _features(30, 8, 0), _features(50, 8, 1)
    assert kernel_distance(real, fake) == kernel_distance(real, fake, subset_size=30)
    whole = kernel_distance(real, fake[:30])
    assert whole.mean == squared_mmd(real, fake[:30])
    assert whole.std == 0.0


def test_kernel_distance_is_unbiased_for_equal_distributions() -> None:
    distances = [squared_mmd(_features(40, 8, seed), _features(40, 8, 1000 + seed)) for seed in range(200)]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(len(distances))


def test_half_sample_error_of_a_difference_of_means_is_the_textbooks() -> None:
    """A mean over a half drawn without replacement has the variance s^2 / (n / 2), times 1 - 1/2: s^2 / n."""
    real, fake = _features(40, 1, 0).numpy(), 3 * _features(24, 1, 1).numpy()
    found = half_sample_error(lambda a, b: float(a.read().mean() - b.read().mean()), real, fake, repeats=2000)
    assert found == pytest.approx(np.sqrt(real.var(ddof=1) / 40 + fake.var(ddof=1) / 24), rel=0.08)
    assert np.isnan(half_sample_error(squared_mmd, _features(3, 4, 0), _features(9, 4, 1)))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.zeros((1, 4)), np.zeros((5, 4)), "real images: 1 image, 2 needed"),
        (np.zeros((5, 4)), np.zeros((5, 3)), "4 per image, generated ones 3"),
        (np.zeros((5, 4)), np.full((5, 4), np.nan), "generated images: image 0 has values that are not finite"),
        (np.zeros(5), np.zeros((5, 3)), "shape"),
    ],
)
def test_unusable_features_are_named(distance, real, fake, message) -> None:
    with pytest.raises(InputError, match=message):
        distance(real, fake)


@pytest.mark.parametrize("settings", [{"subsets": 0}, {"subset_size": 1}])
def test_senseless_subsets_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="subsets must be 1 or more"):
        kernel_distance(np.zeros((5, 4)), np.zeros((5, 4)), **settings)


def test_metrics_accumulate_batches_and_reset() -> None:
    images = torch.rand(12, 3, 4, 4) * 2 - 1
    frechet, kernel = FrechetDistanceMetric(torch.nn.Flatten()), KernelDistanceMetric(torch.nn.Flatten(), subsets=5)
    for metric in (frechet, kernel):
        for start in (0, 3):
            metric.update(images[start : start + 3], real=True)
            metric.update(images[start + 6 : start + 9], real=False)
    flat = images.flatten(1)
    assert float(frechet.compute()) == pytest.approx(frechet_distance(flat[:6], flat[6:]), rel=1e-5)
    assert kernel.compute().mean == pytest.approx(kernel_distance(flat[:6], flat[6:]).mean, rel=1e-5)
    kernel.reset()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="no real images"):
        kernel.compute()


def test_the_frechet_metric_holds_no_more_however_many_images() -> None:
    metric = FrechetDistanceMetric(torch.nn.Flatten())
    images = torch.rand(300, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    held = []
    for start in range(0, 300, 10):
        metric.update(images[start : start + 10], real=start % 20 == 0)
        held.append(sum(len(rows) for side in (metric.real_rows, metric.fake_rows) for rows in side))
    assert max(held) <= 2 * 2 * (12 + 1)
    of_kind = images.reshape(-1, 10, 12)
    expected = frechet_distance(of_kind[::2].reshape(-1, 12), of_kind[1::2].reshape(-1, 12))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-6)


class CountedRows:
    """Features that note how many of them are asked for at once."""

    def __init__(self, count: int, seed: int) -> None:
        self.rows = _features(count, 8, seed).numpy()
        self.shape = self.rows.shape
        self.most = 0

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(places))
        return self.rows[places]


@pytest.mark.parametrize("distance", [frechet_distance, frechet_error, kernel_distance, kernel_error, cmmd])
def test_distances_read_a_block_at_a_time(distance: Callable[..., object]) -> None:
    sources = [CountedRows(3000, seed) for seed in (0, 1)]
    distance(*(FeatureRows(source) for source in sources))
    assert 0 < max(source.most for source in sources) <= BLOCK
