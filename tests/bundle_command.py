"""A configuration of the bundle as a user runs it from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from warm import run_python


def run_config(repository: Path, name: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run`` on ``bundle/configs/NAME.json``, in the repository's root and offline."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"bundle/configs/{name}.json"]
    command += [word for setting, value in settings.items() for word in (f"--{setting}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"}
    return run_python(command, repository, environment, timeout=900)
