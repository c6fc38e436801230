"""Measure what a GPU does for this project, in stages in order of worth, within a given time.

    bash scripts/gpu.sh OUT --wheels WHEELS --minutes 12 --peer train_text_to_image.py

OUT gets ``gpu.json`` and ``gpu.md``, written anew after every measurement, so that a run that is cut keeps what it did,
and the small models' weights. See docs/benchmarks/gpu.md.
"""

from __future__ import annotations

import argparse
import compileall
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu_run import Results, check_output, plan, run
from limits import Clock


def install(wheels: Path, folder: Path) -> None:
    """Unpack wheels into a folder, for this process and all that it starts."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", str(folder), *map(str, sorted(wheels.glob("*.whl")))], check=True)
    compileall.compile_dir(folder, quiet=2, workers=0)  # on all cores, or every process would do it on one
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(folder)]).strip(os.pathsep)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is not installed, see gpu_wheels.sh")
    parser.add_argument("--minutes", type=float, default=12, help="for everything")
    parser.add_argument("--peer", type=Path, help="diffusers' examples/text_to_image/train_text_to_image.py")
    parser.add_argument("--batch_size", type=int, default=8, help="images a step in training, of both programs")
    parser.add_argument("--datalist", type=Path, help="that the small model trains on, its images beside it")
    parser.add_argument("--inpainting_datalist", type=Path, help="crops with masks, for the inpainting model")
    parser.add_argument("--base_model", type=Path, help="the small base model; by default the bundle's, trained on")
    parser.add_argument("--overlay", type=Path, help="further configuration of the small models' training")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: tiny networks instead of full-size ones")
    parser.add_argument("--plan", action="store_true", help="print the plan and end")
    options = parser.parse_args()
    clock = Clock(options.minutes * 60)
    signal.signal(signal.SIGTERM, clock.stop)
    signal.signal(signal.SIGINT, clock.stop)
    with tempfile.TemporaryDirectory() as work:
        if options.wheels:
            install(options.wheels, Path(work) / "site")
        from gpu_stages import Setup, all_stages  # needs what the wheels bring

        stages = all_stages(Setup(options, Path(work), clock))
        print(plan(stages, options.minutes), flush=True)
        if not options.plan:
            run(stages, Results(options.output.resolve(), stages, options.minutes), clock)
            check_output(options.output)


if __name__ == "__main__":
    main()
