"""What a benchmark ran on: versions, the machine, and the rate of its matrix products."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "monai", "pytorch-ignite", "datasets")


def describe(device: str) -> dict[str, str]:
    """Name -> text: the processor or GPU and the versions of what decides the speed; no host name."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "-"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, {_processor()}",
        "load": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@torch.no_grad()
def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None, seconds: float = 2.0) -> float:
    """Operations per second, in units of 1e12, of products of two large square matrices: the best of several.

    On a CPU it is per second of processor time over the number of threads, so that other processes do not lower it.

    Args:
        device: "cuda" or "cpu".
        dtype: of the matrices.
        size: rows and columns; by default what fills the device.
        seconds: how long to try.
    """
    size = size or (8192 if device == "cuda" else 2048)
    left, right = torch.randn(2, size, size, device=device).to(dtype)

    def clock() -> float:
        if device != "cuda":
            return time.process_time() / torch.get_num_threads()
        torch.cuda.synchronize()
        return time.perf_counter()

    left @ right
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = clock()
        left @ right
        best = min(best, clock() - start)
    return 2 * size**3 / best / 1e12
