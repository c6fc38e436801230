from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.sensitivity import load_sensitivity
from nodule_plugin.report.sensitivity import markdown, write_sensitivity

NOT_MEASURED = {"values": [None, None], "ci95": [None, None], "first_step_seen": None, "tau": None}


@pytest.fixture
def results() -> dict[str, Any]:
    blur = {"values": [0.1, 0.9], "ci95": [[0.0, 0.2], [0.8, 1.0]], "first_step_seen": 0.5, "tau": 1.0}
    shift = {"values": [0.1, 0.1], "ci95": [[0.0, 0.2], [0.0, 0.2]], "first_step_seen": None, "tau": 0.1}
    return {
        "format": "nodule-plugin sensitivity",
        "version": 1,
        "data": "drawn images",
        "convention": {"chain": "roi-cubic-2", "images": 24, "patients": 24, "halvings": 6},
        "faults": [
            {"key": "blur", "name": "Blur", "question": "distance", "unit": "pixels", "steps": [0.3, 0.5]},
            {"key": "shift", "name": "Shift", "question": "distance", "unit": "HU", "steps": [10, 20]},
        ],
        "measures": [
            {"key": "a", "name": "A", "better": "lower", "floor": {"value": 0.1, "ci95": [0.0, 0.2]},
             "faults": {"blur": blur, "shift": shift}},
            {"key": "b", "name": "B", "better": "lower", "floor": {"value": 0.1, "ci95": [0.0, 0.2]},
             "faults": {"blur": NOT_MEASURED, "shift": shift}},
        ],
    }  # fmt: skip


def test_numbers_table_and_figure_are_written(results: dict[str, Any], tmp_path: Path) -> None:
    files = write_sensitivity(results, tmp_path / "new")
    assert [file.name for file in files] == ["sensitivity.md", "sensitivity.png", "sensitivity.json"]
    assert json.loads(files[2].read_text(encoding="utf-8")) == results
    assert files[1].read_bytes().startswith(b"\x89PNG")
    text = files[0].read_text(encoding="utf-8")
    assert "| A | 0.10 [0.00, 0.20] | 0.5 | – |" in text  # seen from the second step on; blind
    assert "| B | 0.10 [0.00, 0.20] |  | – |" in text  # not measured is not blind
    assert "- chain: roi-cubic-2" in text


def test_a_folder_that_cannot_be_written_is_named(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^output_dir .*file: cannot be written"):
        write_sensitivity(results, tmp_path / "file")


def test_the_page_of_the_documentation_is_the_shipped_tables(repository: Path) -> None:
    page = (repository / "docs" / "sensitivity.md").read_text(encoding="utf-8")
    assert page == markdown(load_sensitivity()), "copy sensitivity.md and sensitivity.png to docs, .json to metrics"
