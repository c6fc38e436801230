from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest


@pytest.fixture(scope="module")
def stored(repository: Path) -> Any:
    return nbformat.read(repository / "docs" / "tutorial.ipynb", as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


FEWER = {"steps=10": "steps=2", "val_steps=5": "val_steps=1", "epochs=2": "epochs=1", "val_images=8": "val_images=4"}
"""Of what takes time: whether the images are good is not what is tested."""


@pytest.mark.slow
def test_every_cell_runs(stored: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODULE_BUNDLE", str(repository / "bundle"))
    ran = copy.deepcopy(stored)
    for cell, (old, new) in product(ran.cells, FEWER.items()):
        cell.source = cell.source.replace(old, new)
    nbclient.NotebookClient(ran, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "work" / "evaluation" / "report.html").is_file()
    for old, new in zip(texts(stored), texts(ran), strict=True):
        assert old == new  # sentences and counts; tables of measured values differ by the processor


def texts(notebook: Any) -> list[str]:
    results = [output.data for output in outputs(notebook) if output.output_type == "execute_result"]
    return [data["text/plain"] for data in results if not {"image/png", "text/markdown"} & set(data)]


def test_what_is_stored_shows_pictures_and_no_error(stored: Any) -> None:
    kinds = [set(output.get("data", {})) for output in outputs(stored)]
    assert sum("image/png" in kind for kind in kinds) == 4
    assert not [output for output in outputs(stored) if output.output_type == "error" or output.get("name") == "stderr"]
