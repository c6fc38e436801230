"""Fill the latent cache of a training run with every image in every orientation, and print what each took.

    python fill_cache.py TRAIN.json OVERLAY.json ...

A training run fills its cache by itself, on first use. This does the same work at once, to time it and so that a run
can be timed with everything in the cache.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from monai.bundle import ConfigParser

from nodule_plugin.data.latents import collate_samples
from nodule_plugin.data.transforms import ORIENTATIONS


def main() -> None:
    """Print {"images", "wall", "processor"}: variants encoded, and seconds for each."""
    parser = ConfigParser()
    parser.read_config(sys.argv[1:])
    dataset = parser.get_parsed_content("train#dataset")
    encoder = parser.get_parsed_content("train#encoder")
    device = parser.get_parsed_content("device")
    variants = [(index, orientation) for index in range(len(dataset)) for orientation in range(ORIENTATIONS)]
    start = time.perf_counter(), time.process_time()
    for first in range(0, len(variants), encoder.batch_size):
        samples = [
            {"index": index, "orientation": turned, "moments": None, "image": dataset.image(index, turned)}
            for index, turned in variants[first : first + encoder.batch_size]
        ]
        encoder(collate_samples(samples), device)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    count = len(variants)
    print(json.dumps({"images": count, "wall": seconds[0] / count, "processor": seconds[1] / count}))


if __name__ == "__main__":
    main()
