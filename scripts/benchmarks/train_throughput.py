"""Images per second of training: this project beside diffusers' examples/text_to_image/train_text_to_image.py.

    python scripts/benchmarks/train_throughput.py --peer train_text_to_image.py --output output/train_throughput.json

Both are real training programs in processes of their own, unchanged, one after the other in turn, on the same base
model (random weights), the same images (noise), batch size, precision and number of threads. Without a GPU a small
Stable Diffusion is trained; with one, SD 1.5 and 2.0 in full size at 512 x 512. The peer's script needs ``pip install
datasets``. Without ``--peer`` only the project is timed. ``--small`` tries everything with a tiny model in minutes.

The project's cache is empty when a process starts, and its first epoch, which is the warm-up, fills it: the steps after
it find all latents there. What the filling takes is measured in the warm-up and set against a training's length.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from base_models import build_base_model, count_operations
from hardware import describe, matrix_rate
from limits import Clock, NotFinished
from noise_pairs import write_noise_pairs
from torchvision.utils import save_image
from tqdm import tqdm

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.transforms import ORIENTATIONS, nodule_transform
from nodule_plugin.files import write_json

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"
ALLOCATORS = {
    "default": {},
    # glibc: keep freed memory instead of giving it back to the system after every step
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"},
}
PROJECT, PEER = "project", "peer"
ENCODING = ("data", "image encoding")
REFERENCE_IMAGES, REFERENCE_EPOCHS = 1453, 90
MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Case:
    """One training, the same for the project and the peer.

    Attributes:
        model: name in :data:`base_models.ARCHITECTURES`.
        image_size: pixels.
        batch_size: images a step.
        precision: of the U-Net's forward pass; the peer casts the frozen networks to it as well.
        compile: torch.compile for the U-Net.
        allocator: of C memory, see :data:`ALLOCATORS`.
        gradient_checkpointing: of the U-Net.
        overlay: further configuration of the bundle, such as ``lora``, which then rules; the peer knows none.
        tf32: whether the peer may take TensorFloat-32, where it computes in float32.
        channels_last: memory format of the project's U-Net; the peer has no such setting.
    """

    model: str
    image_size: int
    batch_size: int
    precision: str
    compile: bool = False
    allocator: str = "default"
    gradient_checkpointing: bool = False
    overlay: str | None = None
    tf32: bool = True
    channels_last: bool = False

    def __str__(self) -> str:
        extras = [
            "compiled" if self.compile else "",
            f"{self.allocator} allocator" if self.allocator != "default" else "",
            "gradient checkpointing" if self.gradient_checkpointing else "",
            self.overlay or "",
            "" if self.tf32 else "no TF32",
            "channels_last" if self.channels_last else "",
        ]
        parts = [self.model, f"{self.image_size} x {self.image_size}", f"batch {self.batch_size}", self.precision]
        return ", ".join([*parts, *(extra for extra in extras if extra)])


@dataclass(frozen=True)
class Run:
    """What one process did.

    Attributes:
        step: median seconds of an optimizer step after warm-up.
        step_processor: the same in seconds of processor time, which other processes disturb less.
        whole: seconds from the process's start to its end.
        until_first_step: of these, before the first step's end (imports, loading, preparing).
        after_last_step: of these, after the last step (writing the model).
        peak_bytes: GPU memory allocated, or the process's resident memory where there is none.
        reserved_bytes: GPU memory that torch's allocator held at most; 0 where there is no GPU.
        steps: that count, after warm-up.
        phases: median seconds of a step by phase, of processor time on CPUs; empty where they were not timed.
        encoding: median seconds of a warm-up step for reading and encoding its images; 0 where phases were not timed.
    """

    step: float
    step_processor: float
    whole: float
    until_first_step: float
    after_last_step: float
    peak_bytes: int
    reserved_bytes: int
    steps: int
    phases: dict[str, float]
    encoding: float


def cpu_plan(batch_size: int) -> list[Case]:
    """Cases for a CPU."""
    cases = [
        Case("small", 256, batch_size, "float32"),
        Case("small", 256, batch_size, "bfloat16"),
        Case("small", 512, max(1, batch_size // 2), "float32"),
    ]
    return cases + [replace(case, allocator="tuned") for case in cases]


def gpu_plan(batch_size: int) -> list[Case]:
    """Cases for a GPU."""
    return [Case(model, 512, batch_size, "bfloat16", compile) for model in ("sd15", "sd2") for compile in (False, True)]


class Room:
    """The folder where a benchmark works: base models, images and the runs' own files.

    Args:
        folder: kept between benchmarks, so that the next one need not prepare it again.
        warmup: steps of the first epoch; a case trains on so many times its batch size different images.
        environment: of every process.
        nice: niceness of the timed processes; below 0 (for root) it keeps others from disturbing them.
        clock: what runs the processes.
    """

    def __init__(
        self, folder: Path, warmup: int, environment: Mapping[str, str], nice: int = 0, clock: Clock | None = None
    ) -> None:
        self.folder = folder
        self.warmup = warmup
        self.environment = dict(environment)
        self.nice = nice
        self.clock = clock or Clock()
        self._preparing = threading.Lock()

    def model(self, name: str) -> Path:
        """Folder of a base model with random weights."""
        with self._preparing:
            return build_base_model(name, self.folder / "models" / name)

    def datalist(self, case: Case) -> Path:
        """Data list of as many pairs as the warm-up takes."""
        images = self.warmup * images_a_step(case)
        with self._preparing:
            return write_noise_pairs(self.folder / f"pairs_{images}", images)

    def config(self, case: Case, output: Path, **settings: Any) -> list[str]:
        """The project's configuration files for a case: its overlays, and what makes both programs alike.

        The last of them is written beside ``output``, where the run's own files go.
        """
        alike: dict[str, Any] = {
            "bundle_root": str(BUNDLE),
            "output_dir": str(output),
            "datalist": str(self.datalist(case)),
            "base_model": str(self.model(case.model)),
            "image_size": case.image_size,
            "precision": case.precision,
            "compile": case.compile,
            "channels_last": case.channels_last,
            "num_workers": 0,
            "augment": False,  # so that one epoch fills the cache; drawing an orientation costs nothing
            "val_images": 0,
            "validate#key_metric": None,  # whose networks a bare machine has not
            "summary_writer": None,
            "checkpoint_steps": 10**9,  # the last step's only; the peer writes none but the model
            "resume": False,
            "allow_marked": True,
        }
        files = [CONFIGS / "train.json", CONFIGS / "sd15.json"]
        if case.overlay is None:
            alike |= {
                "batch_size": case.batch_size,
                "gradient_checkpointing": case.gradient_checkpointing,
                "max_grad_norm": 1.0,  # which the peer cannot switch off
                "ema_decay": None,
                "caption_dropout": 0.0,
            }
        else:
            files.append(CONFIGS / f"{case.overlay}.json")
        overlay = output.with_name("overlay.json")
        overlay.write_text(json.dumps(alike | settings, indent=4))
        return [*map(str, files), str(overlay)]

    def image_folder(self, case: Case) -> Path:
        """The images that the project trains on, as 8-bit PNG of the size of training with ``metadata.jsonl``."""
        items = load_datalist(self.datalist(case), "training")
        folder = self.folder / f"images_{case.image_size}_{len(items)}"
        with self._preparing:
            if not (folder / "metadata.jsonl").is_file():
                self._write_images(case, items, folder)
        return folder

    @staticmethod
    def _write_images(case: Case, items: Sequence[Mapping[str, Any]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        transform = nodule_transform(case.image_size)
        lines = []
        for index, item in enumerate(items):
            save_image(transform(item)["image"] / 2 + 0.5, folder / f"{index:04d}.png")
            lines.append(json.dumps({"file_name": f"{index:04d}.png", "text": item["prompt"]}))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")

    def run(
        self, who: str, case: Case, steps: int, phases: bool, seconds: float = float("inf"), whole: bool = True
    ) -> Run:
        """Train for ``steps`` steps after the warm-up.

        Args:
            who: :data:`PROJECT` or :data:`PEER`.
            case: what.
            steps: that count.
            phases: whether to time them, see :mod:`timed_process`.
            seconds: after which the process is ended.
            whole: let the program end by itself, which writes gigabytes for large models.

        Raises:
            NotFinished: if not even one step after the warm-up was done.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            times, output = Path(temporary) / "times.json", Path(temporary) / "output"
            total = self.warmup + steps
            program = self._project(case, total, output) if who == PROJECT else self._peer(case, total, output)
            what = "phases" if phases else "steps"
            try:
                self._process([str(times), what, "0" if whole else str(total), *program], case, seconds)
            except NotFinished:
                if not times.is_file() or len(json.loads(times.read_text())["steps"]) <= self.warmup:
                    raise
            return summarise(json.loads(times.read_text()), self.warmup, "cpu" if self.on_cpu else "cuda")

    @property
    def on_cpu(self) -> bool:
        """Whether GPUs are hidden from the processes."""
        return self.environment.get("CUDA_VISIBLE_DEVICES") == ""

    def _project(self, case: Case, steps: int, output: Path) -> list[str]:
        epochs = math.ceil(steps / self.warmup)
        files = self.config(case, output, epochs=epochs)
        return ["-m", "monai.bundle", "run", "training", "--config_file", str(files)]

    def _peer(self, case: Case, steps: int, output: Path) -> list[str]:
        options = {
            "pretrained_model_name_or_path": self.model(case.model),
            "train_data_dir": self.image_folder(case),
            "cache_dir": self.folder / "datasets",
            "output_dir": output,
            "resolution": case.image_size,
            "train_batch_size": case.batch_size,
            "max_train_steps": steps,
            "mixed_precision": MIXED_PRECISION[case.precision],
            # By itself it reads images between steps: on a GPU that waits, it would be its slowest part.
            "dataloader_num_workers": 0 if self.on_cpu else 4,
            "learning_rate": 1e-6,
            "lr_warmup_steps": 0,
            "seed": 0,
        }
        flags = [
            "--random_flip",
            *(["--allow_tf32"] if case.tf32 else []),
            *(["--gradient_checkpointing"] if case.gradient_checkpointing else []),
        ]
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [self.environment["PEER"], *words, *flags]

    def _process(self, arguments: Sequence[str], case: Case, seconds: float) -> None:
        extra = ALLOCATORS[case.allocator] | ({"ACCELERATE_DYNAMO_BACKEND": "inductor"} if case.compile else {})
        command = [sys.executable, str(HERE / "timed_process.py"), *arguments]
        if self.nice:
            command = ["nice", "-n", str(self.nice), *command]
        self.clock.run(command, seconds, self.environment | extra, self.folder)


def images_a_step(case: Case) -> int:
    """Images of an optimizer step: an overlay says its own."""
    if case.overlay is None:
        return case.batch_size
    settings = json.loads((CONFIGS / f"{case.overlay}.json").read_text())
    return settings["batch_size"] * settings["accumulation_steps"]


def summarise(times: Mapping[str, Any], warmup: int, device: str) -> Run:
    """A run from what :mod:`timed_process` wrote."""
    steps, phases = times["steps"], times["phases"]
    clock = 1 if device == "cpu" else 0
    walls, processors = ([b[at] - a[at] for a, b in zip(steps[warmup - 1 :], steps[warmup:])] for at in (0, 1))
    step = median(processors if device == "cpu" else walls)
    names = list(dict.fromkeys(name for taken in phases[warmup:] for name in taken))
    by_phase = {name: median(taken.get(name, (0, 0))[clock] for taken in phases[warmup:]) for name in names}
    if by_phase:
        by_phase["rest"] = step - sum(by_phase.values())
    return Run(
        median(walls),
        median(processors),
        times["ended"] - times["started"],
        steps[0][0] - times["started"],
        times["ended"] - steps[-1][0],
        times["peak_bytes"],
        times["reserved_bytes"],
        len(walls),
        by_phase,
        median(sum(taken.get(name, (0, 0))[clock] for name in ENCODING) for taken in phases[1:warmup]),
    )


def variants_drawn(epochs: float) -> float:
    """Different orientations of an image that are expected in so many epochs, each of which draws one."""
    return ORIENTATIONS * (1 - (1 - 1 / ORIENTATIONS) ** epochs)


def amortised_step(step: float, batch_size: int, encoding: float, epochs: float) -> float:
    """Seconds of a step that also bears its share of filling the cache.

    Args:
        step: seconds with everything in the cache.
        batch_size: images a step.
        encoding: seconds for one image in one orientation.
        epochs: of the training.
    """
    return step + batch_size * encoding * variants_drawn(epochs) / epochs


def main() -> None:
    """Measure, print tables in Markdown, write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="diffusers' examples/text_to_image/train_text_to_image.py")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plan", choices=["cpu", "gpu"], help="which cases; by default the device's")
    parser.add_argument("--small", action="store_true", help="the plan's cases with a tiny model at 64 x 64")
    parser.add_argument("--only", default="", help="only the cases whose description holds this text")
    parser.add_argument("--eager", action="store_true", help="leave out the cases with torch.compile")
    parser.add_argument("--batch_size", type=int, default=4, help="on a CPU half of it at 512 x 512")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="for both; off by default")
    parser.add_argument("--threads", type=int, default=1, help="of each process, on a CPU")
    parser.add_argument("--steps", type=int, default=6, help="that count")
    parser.add_argument("--warmup", type=int, default=3, help="steps before these: one epoch, 2 or more")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each, in turn")
    parser.add_argument("--nice", type=int, default=0, help="niceness of the processes; below 0 where others disturb")
    parser.add_argument("--work", type=Path, help="folder for models, images and caches; by default a temporary one")
    parser.add_argument("--output", type=Path, help="write all numbers here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for report in measure(options, (options.work or Path(temporary)).resolve()):
                if options.output:
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    write_json(options.output, report)
        except NotFinished as error:
            raise SystemExit(str(error)) from error
    print(render(report))


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Run everything; what has been found is given after every repeat. See :func:`render` for the content."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    if options.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
        torch.set_num_threads(options.threads)
    if options.peer:
        environment |= {"PEER": str(options.peer.resolve())}
    room = Room(folder, options.warmup, environment, options.nice)
    cases = chosen_cases(options)
    sides = [PROJECT, PEER] if options.peer else [PROJECT]
    results: dict[Case, dict[str, Any]] = {}
    for case in cases:
        room.image_folder(case)
        operations = asdict(count_operations(case.model, case.image_size))
        results[case] = {"case": asdict(case), "operations": operations, **{side: [] for side in sides}}
        if options.device == "cuda" and not case.compile:  # waiting for the GPU would slow the timed runs
            for side in sides:
                results[case][f"{side}_phases"] = asdict(room.run(side, case, options.steps, phases=True))
    precisions = sorted({case.precision for case in cases})
    report = {
        "machine": describe(options.device) | {"threads": str(options.threads)},
        "device": options.device,
        "matrix_rate": {name: matrix_rate(options.device, getattr(torch, name)) for name in precisions},
        "cases": list(results.values()),
    }
    with tqdm(total=len(cases) * len(sides) * options.repeats, desc="processes") as bar:
        for repeat in range(options.repeats):
            for case in cases:
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    phases = options.device == "cpu" and not case.compile
                    results[case][side].append(asdict(room.run(side, case, options.steps, phases)))
                    bar.update()
            yield report


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The cases of a plan that the command line asks for."""
    plan = {"cpu": cpu_plan, "gpu": gpu_plan}[options.plan or ("gpu" if options.device == "cuda" else "cpu")]
    cases = [replace(case, gradient_checkpointing=options.gradient_checkpointing) for case in plan(options.batch_size)]
    if options.small:
        cases = list(dict.fromkeys(replace(case, model="tiny", image_size=64) for case in cases))
    return [case for case in cases if options.only in str(case) and not (options.eager and case.compile)]


def render(report: Mapping[str, Any]) -> str:
    """The tables, in Markdown."""
    measured = [Result(entry, report["matrix_rate"], report["device"]) for entry in report["cases"]]
    lines = [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += [f"- matrix product, {name}: {rate:.3f} TFLOP/s" for name, rate in sorted(report["matrix_rate"].items())]
    lines += ["", "| | s/step | s/step, peer | images/s | images/s, peer | ratio (least to greatest) |"]
    if report["device"] == "cpu":
        lines[-1] += " ratio of processor time |"
    lines.append("|---" * (lines[-1].count("|") - 1) + "|")
    lines += [result.speed_row() for result in measured]
    lines += _defaults(measured)
    lines += ["", *_table("Where a step goes, seconds", [result.phase_rows() for result in measured])]
    lines += ["", "| | encode one variant, s | " + " | ".join(f"{e} epochs" for e in EPOCHS) + " |", "|---" * 6 + "|"]
    lines += [result.fill_row() for result in measured]
    lines += ["", "| | whole process, s | of these until the first step | after the last step | peak memory, GiB |"]
    lines.append("|---" * 5 + "|")
    lines += [row for result in measured for row in result.process_rows()]
    lines += ["", "| | TFLOP/s | fraction of the matrix rate | TFLOP an image | the reference's whole training |"]
    lines.append("|---" * 5 + "|")
    lines += [row for result in measured for row in result.rate_rows()]
    return "\n".join(lines)


EPOCHS = (8, 40, 80, 90)


class Result:
    """A case's numbers as rows of tables.

    Args:
        entry: of the report.
        matrix_rates: precision -> TFLOP/s.
        device: "cpu" or "cuda".
    """

    def __init__(self, entry: Mapping[str, Any], matrix_rates: Mapping[str, float], device: str) -> None:
        self.entry = entry
        self.case = Case(**entry["case"])
        self.matrix_rate = matrix_rates[self.case.precision]
        self.device = device
        self.sides = [side for side in (PROJECT, PEER) if entry.get(side)]

    def step(self, side: str, field: str = "step") -> float:
        """Median over the processes of the median step, seconds."""
        return median(run[field] for run in self.entry[side])

    def ratios(self, field: str = "step", other: Result | None = None) -> list[float]:
        """Peer's seconds over the project's, process by process; ``other`` gives the peer's."""
        theirs = (other or self).entry[PEER]
        return [peer[field] / own[field] for own, peer in zip(self.entry[PROJECT], theirs)]

    def speed_row(self) -> str:
        """Seconds a step and images a second of both, and their ratio."""
        size = self.case.batch_size
        cells = [str(self.case), f"{self.step(PROJECT):.3f}", "", f"{size / self.step(PROJECT):.2f}", "", ""]
        if PEER in self.sides:
            cells[2], cells[4] = f"{self.step(PEER):.3f}", f"{size / self.step(PEER):.2f}"
            cells[5] = spread(self.ratios())
        if self.device == "cpu":
            cells.append(spread(self.ratios("step_processor")) if PEER in self.sides else "")
        return _row(cells)

    def phase_rows(self) -> dict[str, dict[str, float]]:
        """Who -> phase -> seconds."""
        found = {}
        for side in self.sides:
            runs = [run["phases"] for run in self._with_phases(side)]
            if runs:
                found[f"{self.case}: {side}"] = {name: median(run.get(name, 0.0) for run in runs) for name in runs[0]}
        return found

    def _with_phases(self, side: str) -> list[dict[str, Any]]:
        return [run for run in [*self.entry[side], self.entry.get(f"{side}_phases")] if run and run["phases"]]

    @property
    def encoding(self) -> float | None:
        """Seconds that reading and encoding one image for the cache takes; None where it was not measured."""
        runs = self._with_phases(PROJECT)
        return median(run["encoding"] for run in runs) / self.case.batch_size if runs else None

    def fill_row(self) -> str:
        """Images a second, the filling of the cache included, by the length of the training."""
        size, step, encoding = self.case.batch_size, self.step(PROJECT, self.own_step), self.encoding
        if encoding is None:
            return _row([str(self.case), *[""] * (1 + len(EPOCHS))])
        cells = [f"{size / amortised_step(step, size, encoding, epochs):.2f}" for epochs in EPOCHS]
        return _row([str(self.case), f"{encoding:.4f}", *cells])

    def process_rows(self) -> list[str]:
        """Whole processes, and memory."""
        fields = ("whole", "until_first_step", "after_last_step")
        return [
            _row(
                [f"{self.case}: {side}"]
                + [f"{self.step(side, field):.1f}" for field in fields]
                + [f"{self.step(side, 'peak_bytes') / 2**30:.2f}"]
            )
            for side in self.sides
        ]

    def rate_rows(self) -> list[str]:
        """Operations a second, and what the reference's training would take."""
        counted = self.entry["operations"]
        needs = {PROJECT: counted["training"], PEER: sum(counted[n] for n in ("training", "encoding", "text"))}
        rows = []
        for side in self.sides:
            rate = needs[side] * self.case.batch_size / self.step(side, self.own_step)
            time_taken = "" if self.case.model not in ("sd15", "sd2") else f"{self.reference_hours(side):.1f} h"
            cells = [f"{self.case}: {side}", f"{rate:.3g}", f"{rate / self.matrix_rate:.0%}", f"{needs[side]:.4g}"]
            rows.append(_row([*cells, time_taken]))
        return rows

    @property
    def own_step(self) -> str:
        """The clock that says most: processor time on a CPU, which is shared."""
        return "step_processor" if self.device == "cpu" else "step"

    def reference_hours(self, side: str) -> float:
        """Hours for 1,453 images in 8 orientations for 90 epochs, the filling of the cache included."""
        images = REFERENCE_IMAGES * ORIENTATIONS
        seconds = images * REFERENCE_EPOCHS * self.step(side, self.own_step) / self.case.batch_size
        return (seconds + (images * (self.encoding or 0.0) if side == PROJECT else 0)) / 3600


def _defaults(results: Sequence[Result]) -> list[str]:
    """The project in bfloat16, its default for large models, over the peer in float32, its own default."""
    lines = []
    for own in results:
        for other in results:
            pair = own.case.precision == "bfloat16" and other.case == replace(own.case, precision="float32")
            if pair and PEER in other.sides:
                ratio, processor = spread(own.ratios(other=other)), spread(own.ratios("step_processor", other))
                lines.append(f"- {own.case} against the peer's float32: {ratio}; of processor time {processor}")
    return ["", *lines] if lines else []


def spread(values: Sequence[float]) -> str:
    """Median (least to greatest)."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _table(title: str, groups: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    rows = {name: values for group in groups for name, values in group.items()}
    columns = list(dict.fromkeys(column for values in rows.values() for column in values))
    columns = [column for column in columns if column != "rest"] + ["rest"]
    lines = [_row([title, *columns]), "|---" * (len(columns) + 1) + "|"]
    return lines + [_row([name, *(f"{values.get(c, 0.0):.3f}" for c in columns)]) for name, values in rows.items()]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
