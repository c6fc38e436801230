"""What each measure can see: the committed table of ``nodule sensitivity``."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def load_sensitivity() -> dict[str, Any]:
    """The table: faults, and for each measure the first step of each that it tells from its floor; empty if absent."""
    file = files("nodule_plugin.metrics") / "sensitivity.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {"faults": [], "measures": []}
