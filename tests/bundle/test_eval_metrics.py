from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from warm import run_python

SCRIPT = Path("scripts") / "record_eval_metrics.py"


def test_the_metadata_says_what_evaluate_prints(repository: Path, real_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / SCRIPT), "--check", "few"]
    command += ["--crops", str(real_data / "lidc_nodule_crops"), "--work", str(tmp_path)]
    done = run_python(command, repository, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "values agree" in done.stdout


def test_another_value_is_named(repository: Path) -> None:
    spec = importlib.util.spec_from_file_location("record_eval_metrics", repository / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    recorded = {"fd_tiny": 10.0, "copies": 0.0, "frd": 3.0}
    found = {"fd_tiny": 10.05, "copies": 0.0, "kd_tiny": 1.0, "frd": 3.2}
    lines = script.differences(recorded, found)
    assert [line.split(":")[0].strip() for line in lines] == ["frd", "kd_tiny"]
    assert "3.0 recorded, 3.2 found" in lines[0]
