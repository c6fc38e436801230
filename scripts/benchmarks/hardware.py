"""What a benchmark ran on: versions, the machine, and the rate of its matrix products.

python scripts/benchmarks/hardware.py RESULT.json
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
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


def driver() -> str:
    """Version of the GPU's driver, its memory and power limit, as nvidia-smi tells them; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@torch.no_grad()
def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations per second, in units of 1e12, of products of two large square matrices: the best of several.

    On a CPU it is per second of processor time over the number of threads, so that other processes do not lower it.

    Args:
        device: "cuda" or "cpu".
        dtype: of the matrices.
        size: rows and columns; by default what fills the device.
    """
    size = size or (8192 if device == "cuda" else 512)
    left, right = torch.randn(2, size, size, device=device).to(dtype)

    def clock() -> float:
        if device != "cuda":
            return time.process_time() / torch.get_num_threads()
        torch.cuda.synchronize()
        return time.perf_counter()

    left @ right
    best, end = float("inf"), time.perf_counter() + (2.0 if device == "cuda" else 0.5)
    while time.perf_counter() < end:
        start = clock()
        left @ right
        best = min(best, clock() - start)
    return 2 * size**3 / best / 1e12


def main() -> None:
    """Write the description, the driver and the matrix rates."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = {name: matrix_rate(device, getattr(torch, name)) for name in ("bfloat16", "float32")}
    machine = {**describe(device), "driver": driver(), "cuda": torch.version.cuda or ""}
    Path(sys.argv[1]).write_text(json.dumps({"device": device, "machine": machine, "matrix_rate": rates}))


if __name__ == "__main__":
    main()
