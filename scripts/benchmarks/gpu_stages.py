"""The stages of :mod:`gpu`: the card, the U-Net alone, training, memory, sampling, the small models."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import sampling
from gpu_run import OUTPUT_BYTES, Case, Row, Stage
from limits import Clock, NotFinished
from train_throughput import BUNDLE, PEER, PROJECT, Room, images_a_step
from train_throughput import Case as Training
from unet_speed import kernel_groups

HERE = Path(__file__).resolve().parent
MODELS = ("sd15", "sd2")
OVERLAYS = {"low_memory": 24, "lora": 16}
"""Preset -> GB of the card that it is to fit on."""
STEPS, WARMUP = 20, 3
EAGER, COMPILED, SAMPLING, ALONE = (20.0, 75.0), (100.0, 260.0), (30.0, 220.0), (30.0, 150.0)
"""Least and most seconds for a process that loads a full-size model and takes its steps; Inductor needs minutes."""
GIB = 2**30


class Setup:
    """What all stages share.

    Args:
        options: of :mod:`gpu`'s command line.
        work: folder for models and what else is not kept.
        clock: runs all processes.
    """

    def __init__(self, options: argparse.Namespace, work: Path, clock: Clock) -> None:
        self.options = options
        self.work = work
        self.clock = clock
        self.output = options.output.resolve()
        self.cuda = not options.tiny
        self.models = ("tiny",) if options.tiny else MODELS
        self.image_size = 64 if options.tiny else 512
        self.steps = 2 if options.tiny else STEPS
        self.matrix_rate: float | None = None
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
        # So that imports, which ask for a GPU, do not begin to use it: gpu_small's processes are forks.
        environment |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        if options.tiny:
            environment |= {"CUDA_VISIBLE_DEVICES": ""}
        if options.peer:
            environment |= {"PEER": str(options.peer.resolve())}
        if importlib.util.find_spec("datasets") is None:  # which alone needs pyarrow, 50 MB
            environment["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(HERE / "peer_datasets")])
        self.room = Room(work, WARMUP, environment, clock=clock)

    def limits(self, least: float, most: float) -> tuple[float, float]:
        """Least and most seconds of a full-size case; a rehearsal's are others."""
        return (least, most) if self.cuda else (0.0, 300.0)

    def script(self, seconds: float, name: str, *arguments: object) -> None:
        """Run one of the scripts beside this one; see :meth:`limits.Clock.run`."""
        command = [sys.executable, str(HERE / name), *map(str, arguments)]
        self.clock.run(command, seconds, self.room.environment, self.work)


def all_stages(setup: Setup) -> list[Stage]:
    """In order; seconds are of 12 minutes."""
    stages = [card, unet_alone, models, training, memory, guided_sampling, compiled_training, small_models]
    return [stage(setup) for stage in stages]


def number(name: str, digits: int = 1, scale: float = 1.0) -> Callable[[Row, Sequence[Row]], str]:
    """A column: a field of the row, divided; empty where there is none."""
    return lambda row, _: f"{row[name] / scale:.{digits}f}" if row.get(name) is not None else ""


def text(name: str) -> Callable[[Row, Sequence[Row]], str]:
    """A column: a field of the row as it is."""
    return lambda row, _: str(row.get(name, ""))


def card(setup: Setup) -> Stage:
    """What the machine is, and how fast its matrix products are."""

    def measure(seconds: float) -> list[Row]:
        file = setup.work / "card.json"
        setup.script(seconds, "hardware.py", file)
        result = json.loads(file.read_text())
        if result["device"] != "cuda" and setup.cuda:
            setup.clock.stop()
            raise NotFinished("torch finds no GPU here: nothing else is run (--tiny rehearses on a CPU)")
        setup.matrix_rate = result["matrix_rate"]["bfloat16"]
        return [result["machine"] | result["matrix_rate"]]

    columns = {
        "bfloat16, TFLOP/s": number("bfloat16"),
        "float32, TFLOP/s": number("float32"),
        "device": text("device"),
        "driver, memory, power": text("driver"),
        "CUDA": text("cuda"),
        "versions": text("versions"),
    }
    least, most = setup.limits(0, 60)
    return Stage("The card", "", 30, columns, [Case("matrix products", most, least, measure)])


def unet_alone(setup: Setup) -> Stage:
    """Whether launching bounds a U-Net or its kernels do, in every variant; in one process."""
    name = setup.models[0]

    def measure(seconds: float) -> list[Row]:
        file, problem = setup.work / "unet_speed.json", None
        size = setup.image_size // 8
        arguments = ["--model", name, "--latents", size, "--seconds", seconds - 15, "--kernels", "--output", file]
        try:
            setup.script(seconds, "unet_speed.py", *arguments)
        except NotFinished as error:
            problem = str(error)
        rows = json.loads(file.read_text())["rows"] if file.is_file() else []
        rows = [{"case": row["variant"], "status": row.get("error", "done"), **row} for row in rows]
        return rows + ([{"case": name, "status": problem}] if problem else [])

    columns = {
        "images/s": number("rate"),
        "ms a call": number("seconds", 1, 1e-3),
        "launched in, ms": number("launched", 1, 1e-3),
        "fraction of the matrix rate": number("fraction", 2),
        "peak memory, GiB": number("peak_bytes", 1, GIB),
        "kernels' ms by what they do": _kernel_groups,
    }
    least, most = setup.limits(*ALONE)
    title = f"The U-Net of {name} alone, at {setup.image_size} x {setup.image_size}"
    return Stage(title, "", 110, columns, [Case(name, most, least, measure)])


def _kernel_groups(row: Row, _: Sequence[Row]) -> str:
    groups = kernel_groups(row.get("kernels", []))
    return ", ".join(f"{group} {1000 * seconds:.0f}" for group, seconds in groups.items())


def models(setup: Setup) -> Stage:
    """What the next stages need: base models with random weights, and how many operations an image takes."""

    def build(name: str, seconds: float) -> list[Row]:
        setup.script(seconds, "base_models.py", name, setup.work / "models" / name, setup.image_size)
        return [json.loads((setup.work / "models" / name / "operations.json").read_text())]

    columns = {
        "forward, TFLOP an image": number("forward", 3),
        "forward and backward": number("training", 3),
        "encoding": number("encoding", 3),
        "text": number("text", 3),
    }
    least, most = setup.limits(0, 60)
    cases = [Case(name, most, least, partial(build, name)) for name in setup.models]
    return Stage("Base models", "", 60, columns, cases, together=len(cases))


def training(setup: Setup) -> Stage:
    """This project's training beside diffusers' script, as they are."""
    who = [PROJECT, PEER] if setup.options.peer else [PROJECT]
    stage = Stage(
        f"Training at {setup.image_size} x {setup.image_size}",
        "2 times the script's best images/s; 45 % of the matrix rate",
        150,
        _TRAINING_COLUMNS,
        [_training_case(setup, one, model) for model in setup.models for one in who],
    )
    if not setup.options.peer:
        stage.cases.append(Case(PEER_NAME, 0, 0, partial(_not_run, "no script given (--peer)")))
    return stage


def compiled_training(setup: Setup) -> Stage:
    """The same with torch.compile, which takes minutes to begin with; last the script's own defaults."""
    who = [PROJECT, PEER] if setup.options.peer else [PROJECT]
    title = f"Training at {setup.image_size} x {setup.image_size} with torch.compile, and the script as it comes"
    compiled = [_training_case(setup, one, model, compile=True) for model in setup.models for one in who]
    default = [_training_case(setup, PEER, model, precision="float32", tf32=False) for model in setup.models]
    cases = [*(compiled if setup.cuda else []), *(default if setup.options.peer else [])]
    return Stage(title, "", 130, _TRAINING_COLUMNS, cases)


PEER_NAME = "diffusers' script"


def _not_run(reason: str, seconds: float) -> list[Row]:
    raise NotFinished(f"not run: {reason}")


def _training_case(setup: Setup, who: str, model: str, **settings: Any) -> Case:
    settings = {"precision": "bfloat16", **settings}
    case = Training(model, setup.image_size, setup.options.batch_size, **settings)
    name = f"{'project' if who == PROJECT else PEER_NAME}, {case}"
    least, most = setup.limits(*(COMPILED if case.compile else EAGER))
    return Case(name, most, least, partial(_train, setup, who, case))


def _train(setup: Setup, who: str, case: Training, seconds: float) -> list[Row]:
    room, started = setup.room, time.monotonic()
    folder = room.folder / "models" / case.model
    if not (folder / "operations.json").is_file():
        raise NotFinished("not run: there is no base model")
    if who == PEER:
        room.image_folder(case)
    left = seconds - (time.monotonic() - started)
    timed = room.run(who, case, setup.steps, phases=False, seconds=left, whole=False)
    rate = images_a_step(case) / timed.step
    row = asdict(timed) | {"rate": rate, "who": who, "model": case.model}
    if setup.matrix_rate and case.overlay is None:
        operations = json.loads((folder / "operations.json").read_text())
        needed = ("training",) if who == PROJECT else ("training", "encoding", "text")
        row["fraction"] = rate * sum(operations[name] for name in needed) / setup.matrix_rate
    return [row]


def _over_the_best(row: Row, rows: Sequence[Row]) -> str:
    best = [one["rate"] for one in rows if one.get("who") == PEER and one["model"] == row.get("model")]
    return f"{row['rate'] / max(best):.2f}" if best and row.get("who") == PROJECT else ""


_TRAINING_COLUMNS = {
    "images/s": number("rate", 2),
    "times the script's best": _over_the_best,
    "fraction of the matrix rate": number("fraction", 2),
    "peak memory, GiB": number("peak_bytes", 1, GIB),
    "until the first step, s": number("until_first_step"),
    "steps": number("steps", 0),
}


def guided_sampling(setup: Setup) -> Stage:
    """This project's sampler beside diffusers' pipeline; one process, for loading takes longest."""
    model = setup.models[0]
    cases = sampling.gpu_cases(setup.options.batch_size, not setup.cuda)

    def measure(seconds: float) -> list[Row]:
        file = setup.work / "sampling.json"
        repeats, images = 3 if setup.cuda else 1, setup.options.batch_size
        arguments = ["--base_model", setup.work / "models" / model, "--size", setup.image_size]
        arguments += ["--images", images, "--batch", images, "--repeats", repeats, "--output", file]
        problem = None
        try:
            setup.script(seconds, "sampling.py", "--speed_only", *arguments)
        except NotFinished as error:
            problem = str(error)
        rows = json.loads(file.read_text()) if file.is_file() else []
        lost = {} if problem is None else {str(case): problem for case in cases[len(rows) :]}
        return [*rows, *({"case": case, "status": problem} for case, problem in lost.items())]

    columns = {
        "images/s": number("rate", 2),
        "times the pipeline": _over_the_pipeline,
        "of an image's seconds decoding": _decoding,
        "first call, s": number("first_call"),
        "peak memory, GiB": number("peak_bytes", 1, GIB),
    }
    least, most = setup.limits(*SAMPLING)
    title = f"Sampling of {model} at {setup.image_size} x {setup.image_size}, guidance 5"
    return Stage(title, "", 90, columns, [Case("sampling", most, least, measure)])


def _decoding(row: Row, _: Sequence[Row]) -> str:
    return f"{row['decoding']:.3f} of {1 / row['rate']:.3f}" if "rate" in row else ""


def _over_the_pipeline(row: Row, rows: Sequence[Row]) -> str:
    same = [one["rate"] for one in rows if one.get("peer") and one["sampler"] == row.get("sampler")]
    return f"{row['rate'] / max(same):.2f}" if same and not row.get("peer") and "rate" in row else ""


def memory(setup: Setup) -> Stage:
    """Peak memory of the overlays for small cards; none of them tells a speed, so they run at once."""
    cases = []
    for model in reversed(setup.models):  # the larger one first
        for overlay in OVERLAYS:
            case = Training(model, setup.image_size, 1, "bfloat16", overlay=overlay)
            least, most = setup.limits(*EAGER)
            cases.append(Case(f"{overlay}, {model}", most, least, partial(_peak, setup, case)))
    columns = {
        "allocated, GiB": number("peak_bytes", 1, GIB),
        "reserved by torch, GiB": number("reserved_bytes", 1, GIB),
        "to fit on, GB": number("goal", 0),
    }
    goal = "low_memory fits on 24 GB, lora on 16 GB"
    return Stage("Peak memory of the overlays", goal, 110, columns, cases, together=len(cases))


def _peak(setup: Setup, case: Training, seconds: float) -> list[Row]:
    needed = {"low_memory": "bitsandbytes", "lora": "peft"}[str(case.overlay)]
    if importlib.util.find_spec(needed) is None:
        raise NotFinished(f"not run: {needed} is not installed")
    rows = _train(setup, PROJECT, replace(case), seconds)
    return [row | {"goal": OVERLAYS[str(case.overlay)]} for row in rows]


def small_models(setup: Setup) -> Stage:
    """Training of the small models, for the time that is left."""
    columns = {
        "images/s": number("rate", 0),
        "steps": number("step", 0),
        "loss of the last steps": number("loss", 4),
        "trained for, s": number("seconds", 0),
        "weights": text("weights"),
    }
    stage = Stage("The small models", "", 40, columns)
    if not setup.options.datalist and not setup.options.inpainting_datalist:
        return replace(stage, seconds=0, missing="no data list given (--datalist, --inpainting_datalist)")
    least, most = (40.0, float("inf")) if setup.cuda else (0.0, 120.0)
    stage.cases.append(Case("small models", most, least, partial(_train_small, setup)))
    return stage


def _train_small(setup: Setup, seconds: float) -> list[Row]:
    options, work = setup.options, setup.work / "small"
    work.mkdir()
    lists = {"unet": options.datalist, "inpainter": options.inpainting_datalist}
    bases = {"unet": options.base_model or BUNDLE / "models" / "tiny", "inpainter": BUNDLE / "models" / "inpainter"}
    settings: dict[str, Any] = {
        "models": {
            name: {"datalist": str(file.resolve()), "base_model": str(bases[name].resolve())}
            for name, file in lists.items()
            if file
        },
        "work": str(work),
        "output": str(setup.output),
        "batch_size": 128 if setup.cuda else 2,
        "workers": max(1, (os.cpu_count() or 1) - 4) if setup.cuda else 1,
        "further": [str(options.overlay.resolve())] if options.overlay else [],
        "until": time.time() + (seconds - 20 if setup.cuda else 5),
        "every": 30.0 if setup.cuda else 5.0,
        "most_bytes": OUTPUT_BYTES,
    }
    file = work / "settings.json"
    file.write_text(json.dumps(settings, indent=1))
    problem = "done"
    try:
        setup.script(seconds, "gpu_small.py", file)
    except NotFinished as error:
        problem = str(error)
    done = [json.loads(one.read_text()) for name in lists if (one := work / f"{name}.json").is_file()]
    if not done:
        raise NotFinished(problem)
    return [row | {"status": problem} for row in done]
