"""Distances between two sets of features: time and memory here and with torch-fidelity, on the same numbers.

``python scripts/benchmarks/evaluation.py --images 10000`` writes one line a statistic, as a Markdown table. The
features are random with a spread like Inception's; here they lie in the cache of an evaluation, there in memory. Each
statistic runs in a process of its own, so that its peak memory can be told.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.metrics.coverage import manifold_coverage
from nodule_plugin.metrics.feature_cache import FeatureCache
from nodule_plugin.metrics.frechet import frechet_distance, frechet_error
from nodule_plugin.metrics.kernel import kernel_distance, kernel_error

FINGERPRINT = "benchmark"
BATCH = 500


class Random:
    """Features that depend on nothing but the image's first pixels, which hold its number."""

    id = name = fingerprint = FINGERPRINT

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.mixing = torch.randn(64, dimensions, generator=torch.Generator().manual_seed(0)) / 8

    def __call__(self, images: Tensor) -> Tensor:
        numbers = ((images[:, :, 0, 0] + 1) * 127.5).round().long() @ torch.tensor([1, 256, 65536])
        rows = [torch.randn(self.dimensions + 64, generator=torch.Generator().manual_seed(int(n))) for n in numbers]
        stacked = torch.stack(rows)
        return (stacked[:, 64:] * 0.1 + stacked[:, :64] @ self.mixing).abs()


def _images(first: int, count: int) -> list[Tensor]:
    numbers = torch.arange(first, first + count)
    return list(
        torch.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], 1).to(torch.uint8)[:, :, None, None]
    )


def fill(folder: Path, count: int, dimensions: int) -> None:
    """Put the features of ``count`` real and as many generated images into a cache."""
    cache = FeatureCache(folder, Random(dimensions))
    for start in range(0, 2 * count, BATCH):
        cache.features_of(_images(start, BATCH))


def _rows(folder: Path, count: int, dimensions: int) -> tuple[FeatureRows, FeatureRows]:
    cache = FeatureCache(folder, Random(dimensions))
    return cache.features_of(_images(0, count)), cache.features_of(_images(count, count))


def _their_fid(real: Tensor, fake: Tensor) -> float:
    pair = [fid_features_to_statistics(rows) for rows in (real, fake)]
    return fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]


def _their_kid(real: Tensor, fake: Tensor) -> float:
    found = kid_features_to_metric(real, fake, kid_subsets=100, kid_subset_size=1000, rng_seed=0, verbose=False)
    return found["kernel_inception_distance_mean"]


OURS: dict[str, Callable[[FeatureRows, FeatureRows], float]] = {
    "Fréchet distance": frechet_distance,
    "its standard error": frechet_error,
    "both": lambda real, fake: frechet_distance(real, fake) + 0 * frechet_error(real, fake),
    "kernel distance": lambda real, fake: kernel_distance(real, fake).mean,
    "kernel distance, 64 bits": lambda real, fake: kernel_distance(real, fake).mean,
    "its standard error (kernel)": kernel_error,
    "precision and recall": lambda real, fake: manifold_coverage(real, fake, 3).precision,
}
THEIRS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "Fréchet distance": _their_fid,
    "kernel distance": _their_kid,
    "kernel distance, 64 bits": lambda real, fake: _their_kid(real.double(), fake.double()),
    "precision and recall": lambda real, fake: float(calculate_precision_recall_full(fake, real, 3)[0]),
}


def measure(side: str, name: str, folder: Path, count: int, dimensions: int) -> str:
    """One statistic: value, CPU seconds, peak memory above that before it, MiB."""
    rows = _rows(folder, count, dimensions)
    pair = rows if side == "ours" else tuple(torch.from_numpy(part.read()).float() for part in rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    value = (OURS if side == "ours" else THEIRS)[name](*pair)
    seconds = time.process_time() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = 0 if side == "ours" else 2 * count * dimensions * 4 / 2**20
    return f"{value:.6g} {seconds:.1f} {(after - before) / 1024 + held:.0f}"


def main() -> None:
    """Fill a cache, measure each statistic in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="of either kind")
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "NAME", "FOLDER"), help="used by the script itself")
    options = parser.parse_args()
    if options.one:
        side, name, folder = options.one
        print(measure(side, name, Path(folder), options.images, options.dimensions))
        return
    with tempfile.TemporaryDirectory() as scratch:
        started = time.process_time()
        fill(Path(scratch), options.images, options.dimensions)
        print(f"filled the cache in {time.process_time() - started:.0f} s of CPU; {np.__name__} {np.__version__}")
        print("| statistic | here: value | CPU s | MiB | torch-fidelity: value | CPU s | MiB |")
        print("|---|---|---|---|---|---|---|")
        for name in OURS:
            cells = []
            for side in ("ours", "theirs"):
                if side == "theirs" and name not in THEIRS:
                    cells += ["–"] * 3
                    continue
                command = [sys.executable, __file__, "--images", str(options.images)]
                command += ["--dimensions", str(options.dimensions), "--one", side, name, scratch]
                cells += subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-3:]
            print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
