from __future__ import annotations

import numpy as np
import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.kernel import (
    Kernel,
    KernelSums,
    cmmd,
    cmmd_error,
    gaussian_kernel,
    kernel_error,
    polynomial_kernel,
    squared_mmd,
)
from nodule_plugin.metrics.two_samples import checked_pair, half_sample_error


def _pair(count: int, other: int, seed: int = 0, shift: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, 6)), draw.normal(size=(other, 6)) + shift


def test_cmmd_is_the_authors_formula() -> None:
    first, second = _pair(30, 20)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        squared = np.square(a[:, None] - b[None]).sum(axis=2)
        return float(np.exp(-squared / (2 * 10.0**2)).mean())

    expected = mean_kernel(unit[0], unit[0]) + mean_kernel(unit[1], unit[1]) - 2 * mean_kernel(*unit)
    assert cmmd(first, second) == pytest.approx(1000 * expected, rel=1e-9)
    # Embeddings are brought to length 1, as in the authors' code.
    assert cmmd(first * 7, second) == pytest.approx(cmmd(first, second))


def test_equal_sets_have_no_cmmd_and_others_do() -> None:
    first, second = _pair(80, 80, shift=1.0)
    assert cmmd(first, first) == pytest.approx(0.0, abs=1e-9)
    assert cmmd(first, second) > 3 * cmmd_error(first, second)


@pytest.mark.parametrize("count", [30, 200])
def test_sums_by_image_give_the_distance_of_all(count: int) -> None:
    first, second = _pair(count, count + 9)
    for kernel, unbiased in ((polynomial_kernel, True), (gaussian_kernel, False)):
        whole = KernelSums.of(*checked_pair(first, second), kernel).distance(unbiased)
        own = [kernel(rows, rows) for rows in (first, second)]
        means = [
            (values.sum() - np.trace(values)) / (len(values) * (len(values) - 1)) if unbiased else values.mean()
            for values in own
        ]
        assert whole == pytest.approx(sum(means) - 2 * kernel(first, second).mean(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("kernel", "unbiased"), [(polynomial_kernel, True), (gaussian_kernel, False)])
def test_error_is_the_jackknife_that_leaves_each_image_out(kernel: Kernel, unbiased: bool) -> None:
    first, second = _pair(9, 7)

    def distance(*pair: np.ndarray) -> float:
        return KernelSums.of(*checked_pair(*pair), kernel).distance(unbiased)

    without = [
        np.array([distance(np.delete(first, i, 0), second) for i in range(9)]),
        np.array([distance(first, np.delete(second, i, 0)) for i in range(7)]),
    ]
    variance = sum((len(values) - 1) ** 2 / len(values) * values.var(ddof=1) for values in without)
    sums = KernelSums.of(*checked_pair(first, second), kernel)
    assert sums.error(unbiased) == pytest.approx(np.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize(("shift", "too_large"), [(0.3, 1.0), (0.0, 1.4)])
def test_error_is_the_spread_of_repeated_experiments(shift: float, too_large: float) -> None:
    repeated = np.std([squared_mmd(*_pair(150, 150, seed, shift)) for seed in range(100)], ddof=1)
    estimates = [kernel_error(*_pair(150, 150, seed, shift)) for seed in range(10)]
    assert np.mean(estimates) == pytest.approx(too_large * repeated, rel=0.2)
    halves = [half_sample_error(squared_mmd, *_pair(150, 150, seed, shift)) for seed in range(3)]
    assert np.mean(estimates[:3]) < np.mean(halves)


def test_few_images_have_no_error() -> None:
    assert np.isnan(kernel_error(*_pair(3, 9)))
    assert np.isnan(cmmd_error(*_pair(3, 9)))
    with pytest.raises(InputError, match="1 image, 2 needed"):
        cmmd(*_pair(1, 9))
