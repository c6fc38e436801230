from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PEER = """
import argparse, json, pathlib, torch
parser = argparse.ArgumentParser()
parser.add_argument("--max_train_steps", type=int)
parser.add_argument("--train_data_dir", type=pathlib.Path)
options, _ = parser.parse_known_args()
lines = (options.train_data_dir / "metadata.jsonl").read_text().splitlines()
assert all((options.train_data_dir / json.loads(line)["file_name"]).is_file() for line in lines)
layer = torch.nn.Linear(1, 1)
optimizer = torch.optim.AdamW(layer.parameters())
for _ in range(options.max_train_steps):
    layer(torch.ones(len(lines), 1)).sum().backward()
    optimizer.step()
"""


@pytest.mark.usefixtures("warm_processes")
def test_both_train_and_are_timed_alike(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The project's real training, and a stand-in for the peer, which needs a package that the tests do not."""
    (tmp_path / "peer.py").write_text(PEER)
    monkeypatch.chdir(tmp_path)
    options = ["--peer", "peer.py", "--output", "report.json", "--device", "cpu"]
    options += ["--small", "--only", "64 x 64, batch 1, bfloat16", "--plan", "gpu", "--eager", "--batch_size", "1"]
    options += ["--steps", "2", "--warmup", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["train_throughput.py", *options])
    script("train_throughput").main()
    report = json.loads((tmp_path / "report.json").read_text())
    [case] = report["cases"]
    [project], [peer] = case["project"], case["peer"]
    assert project["encoding"] > 0
    assert project["phases"]["U-Net forward"] > 0
    assert project["phases"].get("image encoding", 0) == 0  # all latents came from the cache
    assert peer["phases"]["backward"] > 0
    assert "images/s, peer" in capsys.readouterr().out


@pytest.mark.usefixtures("warm_processes")
def test_a_failing_program_ends_the_benchmark_with_its_error(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    module = script("train_throughput")
    (tmp_path / "peer.py").write_text("raise ValueError('no such option')")
    environment = {"PEER": str(tmp_path / "peer.py"), "CUDA_VISIBLE_DEVICES": ""}
    room = module.Room(tmp_path, warmup=2, environment=environment)
    with pytest.raises(module.NotFinished, match="no such option"):
        room.run("peer", module.Case("tiny", 64, 1, "float32"), 1, phases=True)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1.0), (2, 1.875), (10_000, 8.0)])
def test_orientations_drawn(script: Callable[[str], ModuleType], epochs: int, expected: float) -> None:
    assert script("train_throughput").variants_drawn(epochs) == pytest.approx(expected)


def test_a_step_bears_its_share_of_the_cache(script: Callable[[str], ModuleType]) -> None:
    amortised_step = script("train_throughput").amortised_step
    assert amortised_step(1.0, 4, encoding=0.5, epochs=1) == pytest.approx(3.0)
    assert amortised_step(1.0, 4, encoding=0.5, epochs=1e9) == pytest.approx(1.0)


def test_steps_after_the_warm_up_count(script: Callable[[str], ModuleType]) -> None:
    phases = [{"data": (9, 9)}, {"data": (3, 2)}, {"data": (0.2, 0.1)}, {"data": (0.4, 0.3)}]
    times = {
        "started": 100.0,
        "ended": 130.0,
        "steps": [(110, 5), (115, 8), (117, 9), (118, 9.5)],
        "phases": phases,
        "peak_bytes": 7,
        "reserved_bytes": 8,
    }
    run = script("train_throughput").summarise(times, warmup=2, device="cpu")
    assert (run.step, run.step_processor, run.whole) == (1.5, 0.75, 30.0)
    assert (run.until_first_step, run.after_last_step, run.encoding) == (10.0, 12.0, 2)
    assert run.phases == pytest.approx({"data": 0.2, "rest": 0.55})
    assert run.steps == 2
