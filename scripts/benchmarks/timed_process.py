"""Run a training program, unchanged, and note when its optimizer steps end; the same instrument for any program.

    python timed_process.py TIMES.json phases 0 -m monai.bundle run training --config_file ...
    python timed_process.py TIMES.json steps 12 train_text_to_image.py --resolution 512 ...

A hook of torch.optim marks the end of each optimizer step. With ``phases`` the calls of the autoencoder, the text
encoder, the U-Net, ``Tensor.backward``, the optimizer and the data loader are timed as well, and CUDA is waited for
after each, which slows a GPU down: take ``steps`` there for the speed itself. The number is of optimizer steps after
which the process ends, whatever else the program would do (writing gigabytes of weights); 0 lets it end by itself.
The file is written about every second: of a process that is killed, what it had done by then stays.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter
from transformers import CLIPTextModel

from nodule_plugin.files import replacing

PHASES: dict[str, list[tuple[Any, str]]] = {
    "data": [(_BaseDataLoaderIter, "__next__")],
    "image encoding": [(AutoencoderKL, "encode")],
    "text encoding": [(CLIPTextModel, "forward")],
    "U-Net forward": [(UNet2DConditionModel, "forward")],
    "backward": [(torch.Tensor, "backward")],
    "clipping": [(torch.nn.utils, "clip_grad_norm_")],
    "optimizer": [(torch.optim.AdamW, "step")],
}
"""What is timed by that name: methods of classes, functions of modules. None of them calls another."""


class StepTimes:
    """Wall-clock and processor time at the end of every optimizer step, and what each phase took of it.

    Args:
        file: JSON, written every second and when the process ends.
        phases: whether to time :data:`PHASES`.
        stop_after: steps after which the process ends; 0 for never.
    """

    def __init__(self, file: Path, phases: bool, stop_after: int = 0) -> None:
        self.file = file
        self.stop_after = stop_after
        self.steps: list[tuple[float, float]] = []
        self.phases: list[dict[str, tuple[float, float]]] = []
        self._wall: defaultdict[str, float] = defaultdict(float)
        self._processor: defaultdict[str, float] = defaultdict(float)
        self._wait = phases and torch.cuda.is_available()
        self._written = time.monotonic()
        if phases:
            for name, places in PHASES.items():
                for owner, attribute in places:
                    setattr(owner, attribute, self._timed(name, getattr(owner, attribute)))
        else:
            register_optimizer_step_post_hook(lambda *_: self._end_step())
        atexit.register(self._write)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, processor = self._clock()
            try:
                return call(*args, **kwargs)
            finally:
                after = self._clock()
                self._wall[name] += after[0] - wall
                self._processor[name] += after[1] - processor
                if name == "optimizer":
                    self._end_step()

        return timed

    def _clock(self) -> tuple[float, float]:
        if self._wait:
            torch.cuda.synchronize()
        return time.time(), time.process_time()

    def _end_step(self) -> None:
        self.steps.append(self._clock())
        self.phases.append({name: (self._wall[name], self._processor[name]) for name in self._wall})
        self._wall.clear()
        self._processor.clear()
        last = len(self.steps) == self.stop_after
        if last or time.monotonic() > self._written + 1:
            self._write()
        if last:
            os._exit(0)

    def _write(self) -> None:
        cuda = torch.cuda.is_available()
        times = {
            "started": psutil.Process().create_time(),
            "ended": time.time(),
            "steps": self.steps,
            "phases": self.phases,
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else _peak_resident_bytes(),
            "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else 0,
        }
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps(times))
        self._written = time.monotonic()


def _peak_resident_bytes() -> int:
    """Linux: the kernel's high-water mark of this program (getrusage's also counts the process it was forked from)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """See the module."""
    file, what, stop_after, *program = sys.argv[1:]
    StepTimes(Path(file).absolute(), what == "phases", int(stop_after))
    if program[0] == "-m":
        sys.argv = program[1:]
        sys.path[0] = ""
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        sys.path[0] = str(Path(program[0]).parent)
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
