"""Guided sampling: schedulers and steps, precision, images per call; their time, what they change, beside diffusers.

    python scripts/benchmarks/sampling.py --base_model bundle/models/tiny --size 64
    python scripts/benchmarks/sampling.py --random small --size 256 --images 8

All cases start from the same seeds. How far a case's images are from the reference's (PNDM, 50 steps, float32, one
image a call) is told by the mean difference of their pixels and by the kernel distance between both sets: KID's formula
in the space of the feature network that is named. The reference with other seeds says what other seeds alone make.
diffusers' StableDiffusionPipeline samples the same prompts with the same schedulers, steps, guidance and batch.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from base_models import build_base_model
from hardware import describe
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import PRECISIONS, GenerationPrepareBatch, GuidedSampler, derive_scheduler
from nodule_plugin.files import write_json, write_text_atomically
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import findings_to_prompt

if TYPE_CHECKING:
    from nodule_plugin.metrics.features import FeatureExtractor

PNDM, DPM = "PNDMScheduler", "DPMSolverMultistepScheduler"
PROMPTS = [
    findings_to_prompt(Findings(sphericity=sphericity, margin=margin, texture=texture, spiculation=spiculation))
    for sphericity, margin, texture, spiculation in [(5, 5, 5, 1), (4, 4, 5, 1), (3, 3, 5, 5), (3, 2, 1, 1)]
]


@dataclass(frozen=True)
class Case:
    """One way to sample.

    Attributes:
        scheduler: diffusers' class.
        steps: of denoising.
        per_call: images in one network call, which guidance doubles.
        precision: of the U-Net; the pipeline runs all its networks in it.
        channels_last: memory format of the U-Net.
        compile: torch.compile for the U-Net.
        peer: diffusers' pipeline instead of this project's sampler.
        first_seed: of the images.
    """

    scheduler: str
    steps: int
    per_call: int = 1
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    peer: bool = False
    first_seed: int = 0

    def __str__(self) -> str:
        extras = [("channels_last", self.channels_last), ("compiled", self.compile), ("other seeds", self.first_seed)]
        name = "diffusers' pipeline" if self.peer else "project"
        parts = [name, f"{self.scheduler} {self.steps}", f"{self.per_call} a call", self.precision]
        return ", ".join(parts + [text for text, holds in extras if holds])


def cases_of(batch: int) -> list[Case]:
    """All cases, the reference first."""
    return [
        Case(PNDM, 50),
        Case(PNDM, 50, batch),
        Case(DPM, 20),
        Case(DPM, 20, batch),
        Case(DPM, 20, batch, "bfloat16"),
        Case(DPM, 20, batch, "bfloat16", channels_last=True),
        Case(DPM, 20, batch, "bfloat16", channels_last=True, compile=True),
        Case(PNDM, 50, batch, peer=True),
        Case(DPM, 20, batch, peer=True),
        Case(DPM, 20, batch, "bfloat16", peer=True),
    ]


def gpu_cases(batch: int, rehearsal: bool = False) -> list[Case]:
    """What a GPU's table has, in order of worth; a rehearsal's takes few steps and compiles nothing."""
    samplers = ((DPM, 2), (PNDM, 4)) if rehearsal else ((DPM, 20), (PNDM, 50))
    plain = [Case(*sampler, batch, "bfloat16", peer=peer) for sampler in samplers for peer in (False, True)]
    single = [Case(*samplers[0], 1, "bfloat16")]
    fused = [Case(*sampler, batch, "bfloat16", channels_last=True, compile=True) for sampler in samplers]
    return [*plain, *single, *([] if rehearsal else fused)]


class Bench:
    """Everything loaded once.

    Args:
        base_model: folder in diffusers' layout, or hub id.
        size: of the images, pixels.
        images: of each case.
        guidance_scale: of all.
        device: "cuda" or "cpu".
    """

    def __init__(self, base_model: str, size: int, images: int, guidance_scale: float, device: str) -> None:
        self.base_model = base_model
        self.size = size
        self.prompts = [PROMPTS[index % len(PROMPTS)] for index in range(images)]
        self.guidance_scale = guidance_scale
        self.device = device
        self.scheduler = load_noise_scheduler(base_model)
        self.vae: Any = load_vae(base_model)
        self.vae.to(device)
        self.conditioner = TextConditioner(load_tokenizer(base_model), load_text_encoder(base_model).to(device))
        self._networks: dict[tuple[bool, bool], DiffusionUNet] = {}
        self._pipelines: dict[str, Any] = {}
        self.decoding: list[float] = []
        self._time_decoding(self.vae)

    def _time_decoding(self, vae: Any) -> None:
        """Append to ``decoding`` how many seconds every call of the autoencoder's decoder takes."""
        decode = vae.decode

        @functools.wraps(decode)
        def timed_decode(*args: Any, **kwargs: Any) -> Any:
            started = _synchronised()
            result = decode(*args, **kwargs)
            self.decoding.append(_synchronised() - started)
            return result

        vae.decode = timed_decode

    def sample(self, case: Case) -> Tensor:
        """(B, 3, H, W) images in [-1, 1]."""
        return self._pipeline_images(case) if case.peer else self._project_images(case)

    def _project_images(self, case: Case) -> Tensor:
        prepare = GenerationPrepareBatch(self.conditioner, self.vae, self.size)
        requests = [
            {"prompt": prompt, "guidance_scale": self.guidance_scale, "seed": case.first_seed + number}
            for number, prompt in enumerate(self.prompts)
        ]
        noise, _, _, conditions = prepare(requests, self.device)
        sampler = GuidedSampler(
            self.scheduler,
            self.vae,
            case.steps,
            case.scheduler,
            images_per_call=case.per_call,
            precision=case.precision,
        )
        return sampler(noise, self._network(case), **conditions).cpu()

    def _network(self, case: Case) -> DiffusionUNet:
        key = case.channels_last, case.compile
        if key not in self._networks:
            network = DiffusionUNet.from_base(self.base_model, channels_last=case.channels_last, compile=case.compile)
            self._networks[key] = network.to(self.device).eval()
        return self._networks[key]

    def _pipeline_images(self, case: Case) -> Tensor:
        if case.precision not in self._pipelines:
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
                self.base_model, safety_checker=None, dtype=PRECISIONS[case.precision]
            )
            pipeline.set_progress_bar_config(disable=True)
            self._pipelines[case.precision] = pipeline.to(self.device)
            self._time_decoding(pipeline.vae)
        pipeline = self._pipelines[case.precision]
        pipeline.scheduler = derive_scheduler(self.scheduler, case.scheduler)
        images = []
        for first in range(0, len(self.prompts), case.per_call):
            prompts = self.prompts[first : first + case.per_call]
            seeds = range(case.first_seed + first, case.first_seed + first + len(prompts))
            images.append(
                pipeline(
                    prompts,
                    height=self.size,
                    width=self.size,
                    num_inference_steps=case.steps,
                    guidance_scale=self.guidance_scale,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    output_type="pt",
                ).images
            )
        return torch.cat(images).float().cpu() * 2 - 1


def measure(bench: Bench, cases: Sequence[Case], repeats: int, features: FeatureExtractor | None) -> list[dict]:
    """A dictionary for each case: seconds for each image, of every repeat, and how far from the reference it is.

    The first case is the reference. The cases take turns, so that what disturbs the machine for a while disturbs all
    of them. The first turn warms up, and is the one whose images are compared.
    """
    walls: dict[Case, list[float]] = {case: [] for case in cases}
    processors: dict[Case, list[float]] = {case: [] for case in cases}
    images: dict[Case, Tensor] = {}
    with tqdm(total=len(cases) * (repeats + 1), desc="cases") as bar:
        for repeat in range(repeats + 1):
            for case in cases:
                made, wall, processor = timed(partial(bench.sample, case))
                if repeat == 0:
                    images[case] = made
                else:
                    walls[case].append(wall / len(made))
                    processors[case].append(processor / len(made))
                bar.update()
    reference, other_seeds = cases[0], replace(cases[0], first_seed=1_000_000)
    images[other_seeds] = bench.sample(other_seeds)
    embedded = {} if features is None else {case: features(batch) for case, batch in images.items()}
    return [
        {
            "case": str(case),
            "seconds": walls.get(case, []),
            "processor_seconds": processors.get(case, []),
            "pixel_difference": float((images[case] - images[reference]).abs().mean()),
            **(_distance(embedded[reference], embedded[case]) if embedded and case != reference else {}),
        }
        for case in [*cases, other_seeds]
    ]


def speeds(bench: Bench, cases: Sequence[Case], repeats: int) -> Iterator[dict[str, Any]]:
    """A dictionary for each case: images a second, and what the first call took, compilation included."""
    cuda = torch.cuda.is_available()
    for case in cases:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        _, first, _ = timed(partial(bench.sample, case))
        bench.decoding.clear()
        walls = [timed(partial(bench.sample, case))[1] for _ in range(repeats)]
        yield {
            "case": str(case),
            "sampler": [case.scheduler, case.steps, case.per_call],
            "peer": case.peer,
            "rate": len(bench.prompts) / median(walls),
            "first_call": first,
            "decoding": sum(bench.decoding) / (repeats * len(bench.prompts)),
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }


def _synchronised() -> float:
    """The time when all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """What ``work`` returns, wall-clock and processor seconds. It returns tensors on the CPU: CUDA has finished."""
    wall, processor = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - wall, time.process_time() - processor


def _distance(reference: Tensor, other: Tensor) -> dict[str, float]:
    from nodule_plugin.metrics.kernel import kernel_error, squared_mmd  # no speed needs them

    return {
        "kernel_distance": squared_mmd(reference, other),
        "standard_error": kernel_error(reference, other),
    }


def render(report: dict[str, Any]) -> str:
    """The table, in Markdown."""
    clock = "processor_seconds" if report["device"] == "cpu" else "seconds"
    rows = report["cases"]
    reference = median(rows[0][clock])
    lines = [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += [f"- {name}: {value}" for name, value in report["settings"].items()]
    name = report["features"] or "no features"
    lines += [
        "",
        f"| | s/image | images/s | times the reference | pixels | kernel distance ({name}) |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        distance = f"{row['kernel_distance']:.3g} ± {row['standard_error']:.2g}" if "kernel_distance" in row else ""
        cells = ["", "", ""]
        if row[clock]:
            seconds = median(row[clock])
            cells = [f"{seconds:.3f}", f"{1 / seconds:.2f}", f"{reference / seconds:.2f}"]
        lines.append(" | ".join([f"| {row['case']}", *cells, f"{row['pixel_difference']:.4f}", f"{distance} |"]))
    pairs = {row["case"]: row for row in rows if row[clock]}
    lines.append("")
    for name, row in pairs.items():
        own = name.replace("diffusers' pipeline", "project")
        if own != name and own in pairs:
            ratio = median(theirs / ours for ours, theirs in zip(pairs[own][clock], row[clock]))
            lines.append(f"- ratio to {name}: {ratio:.2f}")
    return "\n".join([*lines, *(f"- left out: {text}" for text in report["left_out"])])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--base_model", default="bundle/models/tiny", help="folder in diffusers' layout, or hub id")
    model.add_argument("--random", help="an architecture of base_models.py with random weights")
    parser.add_argument(
        "--scorer", default="bundle/models/tiny_scorer", help="OpenCLIP model whose images are compared"
    )
    parser.add_argument("--inception_weights", help="compare with Inception instead: the distance is then the KID")
    parser.add_argument("--size", type=int, default=64, help="image size, pixels")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="images in one network call, where several are")
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also on a CPU, where compiling takes minutes")
    parser.add_argument("--speed_only", action="store_true", help="a GPU's cases without comparing their images")
    parser.add_argument("--output", type=Path, help="write all numbers here, as JSON")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        base = str(build_base_model(options.random, Path(temporary))) if options.random else options.base_model
        bench = Bench(base, options.size, options.images, options.guidance_scale, options.device)
        if options.speed_only:
            measure_speeds(options, bench)
        else:
            compare(options, bench)


def measure_speeds(options: argparse.Namespace, bench: Bench) -> None:
    """Print the speeds; write them after every case."""
    rows = []
    for row in speeds(bench, gpu_cases(options.batch, options.device == "cpu"), options.repeats):
        rows.append(row)
        print(f"{row['case']}: {row['rate']:.3f} images/s", flush=True)
        if options.output:
            write_text_atomically(options.output, json.dumps(rows, indent=1))


def compare(options: argparse.Namespace, bench: Bench) -> None:
    """Measure all cases and how far their images are from the reference's; print the table, write all numbers."""
    from nodule_plugin.metrics.features import InceptionFeatures, OpenCLIPImageFeatures  # no speed needs them

    features: FeatureExtractor = (
        InceptionFeatures(options.inception_weights, options.device)
        if options.inception_weights
        else OpenCLIPImageFeatures(options.scorer, "tiny nodule encoder", options.device)
    )
    cases, left_out = cases_of(options.batch), []
    if options.device == "cpu" and not options.compile:
        cases = [case for case in cases if not case.compile]
        left_out.append(
            "torch.compile, which takes minutes on a CPU and gains a few per cent there (--compile tries it)"
        )
    if features.unavailable:
        left_out.append(f"kernel distance: {features.unavailable}")
    rows = measure(bench, cases, options.repeats, None if features.unavailable else features)
    report = {
        "machine": describe(options.device) | {"threads": str(options.threads)},
        "settings": {
            "model": f"{options.random}, random weights" if options.random else options.base_model,
            "images": f"{options.images} of {options.size} x {options.size}, guidance {options.guidance_scale:g}",
        },
        "device": options.device,
        "features": None if features.unavailable else features.name,
        "cases": rows,
        "left_out": left_out,
    }
    print(render(report))
    if options.output:
        write_json(options.output, report)


if __name__ == "__main__":
    main()
