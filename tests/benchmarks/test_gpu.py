from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from nodule_crops import write_balls

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.latents import LatentDataset
from nodule_plugin.data.order import SampleKey
from nodule_plugin.data.transforms import nodule_transform
from nodule_plugin.diffusion.components import load_vae
from nodule_plugin.diffusion.encoding import LatentEncoder, open_latent_cache
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.insertion.network import InpaintingUNet

Script = Callable[[str], ModuleType]
PEER = """
import argparse, torch
from datasets import load_dataset
parser = argparse.ArgumentParser()
parser.add_argument("--max_train_steps", type=int)
parser.add_argument("--train_data_dir")
parser.add_argument("--resolution", type=int)
options, _ = parser.parse_known_args()
images = load_dataset("imagefolder", data_files={"train": options.train_data_dir + "/**"})["train"]
assert images[0]["image"].size == (options.resolution, options.resolution)
optimizer = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())
for _ in range(options.max_train_steps + 1000):
    optimizer.step()
"""


@pytest.mark.usefixtures("warm_processes")
def test_every_stage_is_rehearsed(
    script: Script, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    out = tmp_path / "out"
    options = ["--tiny", "--minutes", "40", "--batch_size", "2", "--peer", str(tmp_path / "peer.py")]
    balls = str(write_balls(tmp_path / "balls", [3.0, 4.0] * 5, [0.0, -500.0] * 5, (7, 2, 1)))
    options += ["--datalist", balls, "--inpainting_datalist", balls]
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(out), *options])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    script("gpu").main()
    stages = json.loads((out / "gpu.json").read_text())["stages"]
    problems = [
        f"{row['case']}: {row['status']}" for rows in stages.values() for row in rows if row["status"] != "done"
    ]
    assert problems == []
    card, alone, models, training, memory, sampling, default, small = stages.values()
    assert card[0]["bfloat16"] > 0
    assert [row["launched"] > 0 for row in alone if "kernels" not in row] == [True] * (len(alone) - 1)
    assert models[0]["training"] > models[0]["forward"] > 0
    assert [row["who"] for row in [*training, *default]] == ["project", "peer", "peer"]
    assert [row["steps"] for row in [*training, *default]] == [2] * 3  # the programs themselves would have gone on
    assert training[0]["fraction"] > 0
    assert [0 < row["decoding"] < 1 / row["rate"] for row in sampling] == [True] * 5
    assert {row["goal"] for row in memory} == {24, 16}  # at once, in any order
    assert [row["case"] for row in small] == ["unet", "inpainter"]
    assert all(row["step"] > 0 for row in small)
    table = (out / "gpu.md").read_text()
    assert "times the script's best" in table
    assert 4 <= len(list(out.iterdir())) <= 8
    kinds = {"unet": (DiffusionUNet, "tiny"), "inpainter": (InpaintingUNet, "inpainter")}
    for name, (kind, base) in kinds.items():
        weights = torch.load(max(out.glob(f"{name}_*.pt")), weights_only=True)
        network = kind.from_base(str(repository / "bundle" / "models" / base))
        assert network.load_state_dict(weights).missing_keys == []


def test_the_tables_in_the_docs_are_those_that_the_script_writes(
    script: Script, repository: Path, tmp_path: Path
) -> None:
    run = script("gpu_run")
    options = Namespace(tiny=False, peer=Path("x"), batch_size=8, output=tmp_path, datalist=None)
    options.inpainting_datalist = None
    setup = script("gpu_stages").Setup(options, tmp_path, script("limits").Clock(720))
    text = (repository / "docs" / "benchmarks" / "gpu.md").read_text()
    for stage in script("gpu_stages").all_stages(setup):
        for line in run.render(stage, []).splitlines():
            assert line in text


def test_the_plan_fits_the_time(script: Script, tmp_path: Path) -> None:
    options = Namespace(
        tiny=False, peer=Path("x"), batch_size=8, output=tmp_path, datalist=Path("x"), inpainting_datalist=None
    )
    setup = script("gpu_stages").Setup(options, tmp_path, script("limits").Clock(720))
    stages = script("gpu_stages").all_stages(setup)
    assert sum(stage.seconds for stage in stages) == 720
    for stage in stages:
        assert stage.cases[0].least <= stage.seconds, stage.title  # nothing is planned that can never begin
    assert "project, sd15, 512 x 512, batch 8, bfloat16, compiled: 100 to 260 s" in script("gpu_run").plan(stages, 12)


def test_kernels_are_grouped_by_what_they_do(script: Script) -> None:
    kernels = [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_nhwckrsc_nhwc", 0.03, 60),
        ("void pytorch_flash::flash_fwd_kernel<...>", 0.02, 32),
        ("nvjet_tst_128x256_64x4", 0.01, 90),
        ("void cudnn::ops::nchwToNhwcKernel<...>", 0.012, 60),
        ("void at::native::elementwise_kernel<...direct_copy_kernel_cuda...>", 0.005, 700),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", 0.004, 200),
        ("something", 0.001, 1),
    ]
    groups = script("unet_speed").kernel_groups(kernels)
    expected = {"matrix products": 0.04, "attention": 0.02, "layout": 0.012, "copies, casts": 0.005}
    assert groups == pytest.approx({**expected, "elementwise, sums": 0.004, "rest": 0.001})
    assert list(groups) == [*expected, "elementwise, sums", "rest"]


def stage(script: Script, measures: list[Callable[[float], list[dict]]], seconds: float, **limits: float) -> object:
    """A stage whose only column is ``value``."""
    run = script("gpu_run")
    most, least = limits.get("most", 60.0), limits.get("least", 0.0)
    cases = [run.Case(f"case {number}", most, least, measure) for number, measure in enumerate(measures)]
    return run.Stage(f"stage of {len(cases)}", "", seconds, {"value": script("gpu_stages").text("value")}, cases)


def test_a_measurement_that_overruns_is_cut_and_the_others_are_kept(script: Script, tmp_path: Path) -> None:
    clock = script("limits").Clock(60)
    marker = tmp_path / "child"

    def endless(seconds: float) -> list[dict]:
        child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(marker)!r}).touch()"
        clock.run(
            [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"], 1.5
        )
        return []

    def broken(seconds: float) -> list[dict]:
        clock.run([sys.executable, "-c", "raise SystemExit('no memory')"], seconds)
        return []

    only = stage(script, [endless, lambda seconds: [{"value": 7}], broken, lambda seconds: [{"value": 8}]], 60)
    results = script("gpu_run").Results(tmp_path / "out", [only], 1)
    script("gpu_run").run([only], results, clock)
    [rows] = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"].values()
    assert rows[0]["status"] == "cut after 2 s"
    assert rows[1]["value"] == 7
    assert rows[2]["status"].startswith("failed with status 1: no memory\n")
    assert rows[3]["value"] == 8
    assert "| case 0 |  | cut after 2 s |" in (tmp_path / "out" / "gpu.md").read_text()
    time.sleep(4)
    assert not marker.exists()  # what the process had started was ended with it


def test_stages_keep_what_is_promised_and_pass_on_what_is_left(script: Script, tmp_path: Path) -> None:
    given: list[float] = []

    def note(seconds: float) -> list[dict]:
        given.append(seconds)
        return [{"value": 1}]

    clock = script("limits").Clock(100)
    first, second = stage(script, [note], 30), stage(script, [note, note], 70, most=float("inf"))
    too_long = stage(script, [note, note, note], 0, least=500)
    stages = [first, second, too_long]
    results = script("gpu_run").Results(tmp_path, stages, 1)
    script("gpu_run").run(stages, results, clock)
    assert given == pytest.approx([30, 100, 100], abs=1)
    assert {row["status"][:7] for row in results.rows[too_long.title]} == {"not run"}


def test_a_signal_ends_the_run_and_keeps_what_was_done(repository: Path, tmp_path: Path) -> None:
    program = f"""
import signal, sys
sys.path.insert(0, {str(repository / "scripts" / "benchmarks")!r})
from gpu_run import Case, Results, Stage, run
from limits import Clock
clock = Clock(600)
signal.signal(signal.SIGTERM, clock.stop)
sleep = lambda seconds: clock.run([sys.executable, "-c", "print(1); import time; time.sleep(500)"], seconds)
cases = [Case("a", 9, 0, lambda s: [{{}}]), Case("b", 600, 0, sleep), Case("c", 9, 0, sleep)]
stage = Stage("stage", "", 1, {{}}, cases)
run([stage], Results(__import__("pathlib").Path({str(tmp_path / "out")!r}), [stage], 10), clock)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "a: done" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    rows = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]["stage"]
    assert [row["status"] for row in rows] == [
        "done",
        "cut: the whole time was over",
        "not run: 0 s were left, too few",
    ]


@pytest.mark.usefixtures("warm_processes")
def test_steps_of_a_killed_process_are_kept(script: Script, tmp_path: Path) -> None:
    """The peer is killed after some 2 seconds: what its file says after one counts."""
    throughput = script("train_throughput")
    killed = "    __import__('time').sleep(0.05)\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "peer.py").write_text(PEER.replace("options.max_train_steps + 1000", "40") + killed)
    stand_in = Path(throughput.__file__).parent / "peer_datasets"
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(stand_in)])
    environment = os.environ | {"PEER": str(tmp_path / "peer.py"), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    room = throughput.Room(tmp_path, warmup=2, environment=environment)
    case = throughput.Case("tiny", 64, 1, "float32")
    room.image_folder(case)
    room.model("tiny")
    run = room.run("peer", case, 10**6, phases=False)
    assert run.steps > 2
    assert run.step == pytest.approx(0.05, rel=1)


def test_an_output_that_cannot_be_taken_home_is_told(script: Script, tmp_path: Path) -> None:
    run = script("gpu_run")
    for name in range(8):
        (tmp_path / str(name)).touch()
    run.check_output(tmp_path)
    (tmp_path / "8").touch()
    with pytest.raises(SystemExit, match="9 files of 8"):
        run.check_output(tmp_path)


def test_the_cache_holds_what_training_would_encode(script: Script, repository: Path, tmp_path: Path) -> None:
    base, small = str(repository / "bundle" / "models" / "tiny"), script("gpu_small")
    datalist = write_balls(tmp_path / "balls", [3.0, 4.0], [0.0, -500.0])
    small.fill_cache(datalist, base, tmp_path / "latents", workers=1)
    items, transform, vae = load_datalist(datalist, "training"), nodule_transform(64), load_vae(base)
    cache = open_latent_cache(tmp_path / "latents", "training", vae, items, transform)
    assert cache is not None
    assert cache.complete == 1
    sample = LatentDataset(items, transform)[SampleKey(1, 5, 1.0)]
    encoded = LatentEncoder(vae)({name: [value] for name, value in sample.items()})
    torch.testing.assert_close(cache.get(1, sample["orientation"]), encoded[0], atol=1e-4, rtol=1e-4)


def test_an_epoch_goes_several_times_over_the_data(script: Script) -> None:
    class Echo(list):
        def __getitem__(self, key: SampleKey) -> SampleKey:
            return key

    repeated = script("gpu_small").Repeated(Echo("abc"))
    assert len(repeated) == 3 * script("gpu_small").TIMES
    assert repeated[SampleKey(7, 11, 0.5)] == SampleKey(1, 11, 0.5)


def make_wheel(path: Path, files: dict[str, str]) -> None:
    """A wheel of these files, with their names in its RECORD."""
    record = "".join(f"{name},,\n" for name in files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "bitsandbytes-1.dist-info/RECORD": record}.items():
            archive.writestr(name, content)


def test_wheels_lose_what_other_gpus_need(script: Script, tmp_path: Path) -> None:
    wheels = script("gpu_wheels")
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda130", "cuda128", "rocm72")]
    make_wheel(wheel, dict.fromkeys([*names, "bitsandbytes/__init__.py"], "content"))
    wheels.thin_wheel(wheel, wheels.LEFT_OUT["bitsandbytes"])
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == [*names[:2], "bitsandbytes/__init__.py", "bitsandbytes-1.dist-info/RECORD"]
        record = archive.read("bitsandbytes-1.dist-info/RECORD").decode()
    assert record.splitlines() == [f"{name},," for name in [*names[:2], "bitsandbytes/__init__.py"]]


def test_what_is_too_large_to_bring_along_is_refused(script: Script, tmp_path: Path) -> None:
    wheels = script("gpu_wheels")
    checkout, further = tmp_path / "checkout", tmp_path / "wheels"
    checkout.mkdir()
    further.mkdir()
    subprocess.run(["git", "init", "--quiet", str(checkout)], check=True)
    (checkout / ".gitignore").write_text("ignored\n")
    (checkout / "ignored").write_bytes(bytes(9000))
    (checkout / "untracked").write_bytes(bytes(1000))
    (further / "one.whl").write_bytes(bytes(500))
    assert "within" in wheels.check_size(checkout, [further], limit=1508)
    with pytest.raises(SystemExit, match="git sparse-checkout"):
        wheels.check_size(checkout, [further], limit=1507)


def test_what_has_to_travel_fits(script: Script, repository: Path) -> None:
    """The checkout without what stays at home leaves half of the room to wheels and images."""
    wheels = script("gpu_wheels")
    at_home = [repository / path.strip("/") for path in wheels.AT_HOME]
    files = [path for path in wheels.travelling(repository) if not any(path.is_relative_to(one) for one in at_home)]
    assert wheels.size_of(files) < wheels.LIMIT / 2
