"""Time per image of guided sampling: schedulers and steps, precision, images per call; beside diffusers' own pipeline.

python scripts/benchmarks/sampling.py --base_model bundle/models/tiny --size 64
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from tqdm import tqdm

from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import GenerationPrepareBatch, GuidedSampler

PROMPT = "The nodule is round in shape, solid internally, with well-defined margins."
CASES: list[dict[str, Any]] = [
    {"scheduler_class": "PNDMScheduler", "num_inference_steps": 50},
    {"scheduler_class": "DPMSolverMultistepScheduler", "num_inference_steps": 20},
    {"scheduler_class": "DPMSolverMultistepScheduler", "num_inference_steps": 20, "images_per_call": 4},
    {"scheduler_class": "DPMSolverMultistepScheduler", "num_inference_steps": 20, "images_per_call": 16},
    {"scheduler_class": "DPMSolverMultistepScheduler", "num_inference_steps": 20, "dtype": "bfloat16"},
    {"scheduler_class": "DPMSolverMultistepScheduler", "num_inference_steps": 20, "guidance_interval": (0.2, 0.8)},
]


def seconds_per_image(generate: Callable[[], Any], images: int, repeats: int, device: str) -> float:
    """The fastest of ``repeats`` calls after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        generate()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:]) / images


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default="bundle/models/tiny", help="folder in diffusers' layout, or hub id")
    parser.add_argument("--size", type=int, default=64, help="image size, pixels")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    base = options.base_model
    scheduler = load_noise_scheduler(base)
    vae: Any = load_vae(base)
    vae.to(options.device)
    network = DiffusionUNet.from_base(base).to(options.device).eval()
    conditioner = TextConditioner(load_tokenizer(base), load_text_encoder(base).to(options.device))
    prepare = GenerationPrepareBatch(conditioner, vae, options.size)
    requests = [
        {"prompt": PROMPT, "guidance_scale": options.guidance_scale, "seed": seed} for seed in range(options.images)
    ]
    noise, _, _, conditions = prepare(requests, options.device)

    rows = []
    for case in tqdm(CASES, desc="cases"):
        sampler = GuidedSampler(scheduler, vae, **case)
        run = functools.partial(sampler, noise, network, **conditions)
        label = ", ".join(str(value) for value in case.values())
        rows.append((label, seconds_per_image(run, options.images, options.repeats, options.device)))

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None).to(options.device)
    pipeline.set_progress_bar_config(disable=True)

    def peer() -> None:
        pipeline([PROMPT] * options.images, height=options.size, width=options.size, num_inference_steps=50,
                 guidance_scale=options.guidance_scale, output_type="pt")  # fmt: skip

    rows.append(
        (
            "diffusers pipeline, its scheduler, 50",
            seconds_per_image(peer, options.images, options.repeats, options.device),
        )
    )
    print(f"{torch.get_num_threads()} threads, {options.device}, {options.size} x {options.size}")
    for label, seconds in rows:
        print(f"{seconds:8.3f} s/image  {label}")


if __name__ == "__main__":
    main()
