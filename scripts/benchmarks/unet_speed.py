"""What bounds Stable Diffusion's U-Net on a GPU, the launching of kernels or the kernels, and what helps it.

    python scripts/benchmarks/unet_speed.py --seconds 240 --output unet_speed.json

One process and one U-Net with random weights, in every variant of memory format, weights, batch and launching. A CUDA
graph launches all kernels of a call at once: its time is the kernels' own, and what it saves was the processor's. A
training step is the product's: autocast, squared error, clipping, AdamW. Written after every variant; what follows the
given time is left out, and a variant that fails says why.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from base_models import ARCHITECTURES, count_operations
from hardware import describe, matrix_rate
from torch import Tensor, nn

from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.files import write_text_atomically

DTYPE = torch.bfloat16
TOKENS = 77
WARMUP, CALLS = 3, 10
"""Calls before and in a measurement; one each on a CPU, where this is tried out."""


@dataclass(frozen=True)
class Variant:
    """One way to run the U-Net.

    Attributes:
        batch: latents in a call.
        training: a whole step; else a forward pass without gradients, as sampling takes it.
        channels_last: memory format of weights and latents.
        half: weights in bfloat16; else in float32, cast by autocast in every call.
        graph: the U-Net's kernels in CUDA graphs.
        fused: one kernel for AdamW.
        search: cuDNN tries its algorithms for each shape.
        compile: torch.compile.
    """

    batch: int
    training: bool = False
    channels_last: bool = False
    half: bool = False
    graph: bool = False
    fused: bool = False
    search: bool = False
    compile: bool = False

    def __str__(self) -> str:
        settings = ("channels_last", "half", "graph", "fused", "search", "compile")
        parts = [name for name in settings if getattr(self, name)]
        return ", ".join(["training step" if self.training else "forward", f"batch {self.batch}", *parts])


VARIANTS = [
    Variant(8, training=True),
    Variant(8, training=True, channels_last=True),
    Variant(32, training=True),
    Variant(32, training=True, channels_last=True),
    Variant(16),
    Variant(16, half=True),
    Variant(16, half=True, channels_last=True),
    Variant(2),
    Variant(2, half=True, channels_last=True),
    Variant(8, training=True, fused=True),
    Variant(8, training=True, channels_last=True, search=True),
    Variant(4, training=True),
    # Capturing can fail, and spoil what follows.
    Variant(16, half=True, channels_last=True, graph=True),
    Variant(2, half=True, channels_last=True, graph=True),
    Variant(16, graph=True),
    Variant(8, training=True, graph=True),
    Variant(8, training=True, channels_last=True, graph=True, fused=True),
    Variant(4, training=True, channels_last=True, graph=True, fused=True),
    Variant(32, training=True, channels_last=True, graph=True, fused=True),
]
COMPILED = [Variant(8, training=True, compile=True), Variant(16, half=True, channels_last=True, compile=True)]


@dataclass(frozen=True)
class Room:
    """What all variants share.

    Attributes:
        base: the network, copied for each.
        device: "cuda" or "cpu".
        width: of text embeddings.
        size: height and width of latents.
    """

    base: nn.Module
    device: str
    width: int
    size: int


def inputs(batch: int, room: Room, memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and text embeddings of noise."""
    torch.manual_seed(0)
    latents = torch.randn(batch, 4, room.size, room.size, device=room.device).to(memory_format=memory_format)
    timesteps = torch.randint(0, 1000, (batch,), device=room.device)
    return latents, timesteps, torch.randn(batch, TOKENS, room.width, device=room.device)


def autocast(device: str, variant: Variant) -> AbstractContextManager:
    """As the product casts; a graph may not hold what autocast's cache has cast outside of it."""
    return torch.autocast(device, DTYPE, enabled=not variant.half, cache_enabled=not variant.graph)


def training_step(network: Any, variant: Variant, room: Room) -> Callable[[], None]:
    """What is done for a batch."""
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=variant.fused or None)
    latents, timesteps, context = inputs(variant.batch, room, _memory_format(variant))
    target = torch.randn_like(latents)
    if variant.graph:
        with autocast(room.device, variant):
            network = torch.cuda.make_graphed_callables(network, (latents, timesteps, context))

    def step() -> None:
        with autocast(room.device, variant):
            prediction = network(latents, timesteps, context)
        nn.functional.mse_loss(prediction.float(), target).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward_pass(network: Any, variant: Variant, room: Room) -> Callable[[], None]:
    """One call of a sampler."""
    arguments = inputs(variant.batch, room, _memory_format(variant))
    if variant.half:
        arguments = arguments[0].to(DTYPE), arguments[1], arguments[2].to(DTYPE)

    @torch.no_grad()
    def call() -> None:
        with autocast(room.device, variant):
            network(*arguments)

    if not variant.graph:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _memory_format(variant: Variant) -> torch.memory_format:
    return torch.channels_last if variant.channels_last else torch.contiguous_format


def prepared(base: nn.Module, variant: Variant) -> nn.Module:
    """A copy of the network for a variant."""
    network: Any = copy.deepcopy(base)
    network.to(dtype=DTYPE if variant.half else torch.float32, memory_format=_memory_format(variant))
    network.requires_grad_(variant.training)
    if variant.compile:
        network.unet.compile()
    return network.train(variant.training)


def measure(room: Room, variant: Variant) -> dict[str, float]:
    """Seconds of a call, until it is launched and until it is done, and what preparing took."""
    started = time.perf_counter()
    torch.backends.cudnn.benchmark = variant.search
    make = training_step if variant.training else forward_pass
    call = make(prepared(room.base, variant), variant, room)
    warmup, calls = (WARMUP, CALLS) if room.device == "cuda" else (1, 1)
    for _ in range(warmup):
        call()
    prepare = _synchronised(room.device) - started
    if room.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    launched = time.perf_counter() - started
    done = _synchronised(room.device) - started
    peak = torch.cuda.max_memory_allocated() if room.device == "cuda" else 0
    return {"seconds": done / calls, "launched": launched / calls, "prepare": prepare, "peak_bytes": peak}


def _synchronised(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def kernels(room: Room, variant: Variant) -> list[tuple[str, float, int]]:
    """Name, seconds and calls of the kernels of one call, the longest first; nothing where no profiler sees any."""
    call = training_step(prepared(room.base, variant), variant, room)
    for _ in range(WARMUP):
        call()
    _synchronised(room.device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        _synchronised(room.device)
    sums: dict[str, tuple[float, int]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seconds, calls = sums.get(event.name, (0.0, 0))
            sums[event.name] = seconds + event.time_range.elapsed_us() / 1e6, calls + 1
    # AdamW marks its step, which spans kernels.
    sums = {name: taken for name, taken in sums.items() if not name.startswith("Optimizer.step")}
    return sorted(((name, *taken) for name, taken in sums.items()), key=lambda row: -row[1])


KERNELS = {
    "attention": "flash|fmha|attention|sdpa",
    "layout": "nchw.?to|nhwc.?to|transpose",
    "matrix products": "gemm|conv|cutlass|xmma|nvjet|implicit|wgrad|dgrad|fprop|splitk",
    "normalisation": "norm|moments|internalgradients|gammabeta",
    "optimizer, clipping": "adam|multi_tensor|foreach",
    "copies, casts": "copy|memcpy|memset|cat",
    "elementwise, sums": "elementwise|reduce",
}
"""What a kernel does, by the first pattern that its name holds, in any case."""


def kernel_groups(taken: Sequence[tuple[str, float, int]]) -> dict[str, float]:
    """Seconds of kernels by what they do, the most first.

    Args:
        taken: as :func:`kernels` gives them.
    """
    sums: dict[str, float] = {}
    for name, seconds, _ in taken:
        group = next((group for group, pattern in KERNELS.items() if re.search(pattern, name.lower())), "rest")
        sums[group] = sums.get(group, 0.0) + seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", choices=sorted(ARCHITECTURES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--seconds", type=float, default=240, help="after which nothing new begins")
    parser.add_argument("--compiled", action="store_true", help="the variants with torch.compile, which takes minutes")
    parser.add_argument("--kernels", action="store_true", help="also list the kernels of a training step")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    architecture, device = ARCHITECTURES[options.model], options.device
    operations = count_operations(options.model, 8 * options.latents)
    report: dict[str, Any] = {
        "machine": describe(device),
        "matrix_rate": matrix_rate(device, DTYPE),
        "model": options.model,
        "operations": asdict(operations),
        "rows": [],
    }
    with torch.device(device):
        base = DiffusionUNet(architecture.unet())
    room = Room(base, device, architecture.text["hidden_size"], options.latents)
    work: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (str(variant), partial(_row, room, variant, operations, report["matrix_rate"]))
        for variant in (COMPILED if options.compiled else VARIANTS)
        if device == "cuda" or not (variant.graph or variant.fused)
    ]
    if options.kernels:
        work.insert(4, ("kernels", lambda: {"kernels": kernels(room, VARIANTS[0])}))
    for name, measured in work:
        if time.monotonic() > end:
            break
        try:
            row = measured()
        except Exception as error:  # one variant's fault must not cost the others their minutes
            row = {"error": f"{type(error).__name__}: {error}"[:2000]}
        report["rows"].append({"variant": name, **row})
        shown = {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
        print(name, shown or str(row)[:300], file=sys.stderr, flush=True)
        write_text_atomically(options.output, json.dumps(report, indent=1))
        if device == "cuda":
            torch.cuda.empty_cache()
    print(render(report))


def _row(room: Room, variant: Variant, operations: Any, matrix_rate: float) -> dict[str, Any]:
    row: dict[str, Any] = measure(room, variant)
    rate = variant.batch / row["seconds"]
    needed = operations.training if variant.training else operations.forward
    return row | {"rate": rate, "fraction": rate * needed / matrix_rate}


def render(report: dict[str, Any]) -> str:
    """The table, in Markdown."""
    lines = ["| | images/s | ms a call | launched in, ms | fraction of the matrix rate | GiB | prepared in, s |"]
    lines.append("|---" * 7 + "|")
    for row in report["rows"]:
        if "error" in row:
            lines.append(f"| {row['variant']} | failed: {row['error'].splitlines()[0]} | | | | | |")
        elif "rate" in row:
            cells = [f"{row['rate']:.1f}", f"{1000 * row['seconds']:.1f}", f"{1000 * row['launched']:.1f}"]
            cells += [f"{row['fraction']:.2f}", f"{row['peak_bytes'] / 2**30:.1f}", f"{row['prepare']:.1f}"]
            lines.append(f"| {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
