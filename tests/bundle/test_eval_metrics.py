from __future__ import annotations

import sys
from pathlib import Path

import record_eval_metrics
from warm import run_python


def test_the_metadata_says_what_evaluate_prints(repository: Path, real_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, record_eval_metrics.__file__, "--check", "few"]
    command += ["--crops", str(real_data / "lidc_nodule_crops"), "--work", str(tmp_path)]
    done = run_python(command, repository, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "values agree" in done.stdout


def test_another_value_is_named() -> None:
    recorded = {"fd_tiny": 10.0, "copies": 0.0, "frd": 3.0}
    found = {"fd_tiny": 10.05, "copies": 0.0, "kd_tiny": 1.0, "frd": 3.2}
    lines = record_eval_metrics.differences(recorded, found)
    assert [line.split(":")[0].strip() for line in lines] == ["frd", "kd_tiny"]
    assert "3.0 recorded, 3.2 found" in lines[0]
