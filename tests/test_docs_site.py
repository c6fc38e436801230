from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LOADED = r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="([^"]*)"'


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(repository: Path, tmp_path: Path) -> None:
    """A warning: a link or anchor that leads nowhere, a page outside the navigation, a docstring griffe cannot read."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    start = (tmp_path / "index.html").read_text()
    assert 'href="lidc/"' in start
    assert "Hounsfield" in (tmp_path / "api" / "data" / "index.html").read_text()
    loaded = [address for page in tmp_path.rglob("*.html") for address in re.findall(LOADED, page.read_text())]
    assert [address for address in loaded if "//" in address] == []
