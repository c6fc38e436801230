"""A whole evaluation: processor time, time by the clock and peak memory of ``evaluate.json`` on so many images.

``python scripts/benchmarks/evaluation_whole.py --images 500 [settings of evaluate.json: --inception_weights F, ...]``
writes that many PNG files of 64 x 64 pixels, half of them real and all with prompts, evaluates them in a process of its
own, and prints one row of a Markdown table. ``--folders REAL GENERATED`` evaluates these two instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PROMPTS = tuple(f"The nodule is {shape} in shape." for shape in ("round", "nearly round", "oval", "nearly linear"))
BUNDLE = Path(__file__).parents[2] / "bundle"


def write_set(folder: Path, count: int, seed: int) -> Path:
    """Smooth random pictures with ``manifest.json``."""
    draw = np.random.default_rng(seed)
    folder.mkdir()
    listed = []
    for index in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8))
        name = f"{index:06}.png"
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / name)
        listed.append({"image": name, "prompt": PROMPTS[index % len(PROMPTS)]})
    (folder / "manifest.json").write_text(json.dumps({"images": listed}), encoding="utf-8")
    return folder


def main() -> None:
    """Write the pictures, evaluate them, print the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="real and generated ones together")
    parser.add_argument("--folders", nargs=2, type=Path, metavar=("REAL", "GENERATED"), help="evaluate these instead")
    options, settings = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        real, generated = options.folders or (
            write_set(Path(scratch) / "real", options.images // 2, 0),
            write_set(Path(scratch) / "generated", options.images - options.images // 2, 1),
        )
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(BUNDLE / "configs/evaluate.json")]
        command += ["--bundle_root", str(BUNDLE), "--real_dir", str(real), "--generated_dir", str(generated)]
        command += ["--output_dir", str(Path(scratch) / "output"), *settings]
        start = time.monotonic()
        subprocess.run(command, check=True)
        elapsed = time.monotonic() - start
        results = json.loads((Path(scratch) / "output/metrics.json").read_text(encoding="utf-8"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = {key for row in results["rows"] for key, value in row["values"].items() if value["value"] is not None}
    images = sum(row["images"] for row in results["rows"] if row["kind"] in ("real", "generated"))
    print("| images | columns | CPU s | elapsed s | peak memory, MiB |\n|---|---|---|---|---|")
    processor = used.ru_utime + used.ru_stime
    print(f"| {images} | {len(computed)} | {processor:.0f} | {elapsed:.0f} | {used.ru_maxrss / 1024:.0f} |")


if __name__ == "__main__":
    main()
