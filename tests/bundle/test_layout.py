from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

CONFIGS = ["prepare", "train", "inference", "evaluate", "dose_response", "attack", "release", "sd15", "sd2", "metadata"]
REQUIRED = ["LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"]
MEGABYTE = 2**20


@pytest.mark.parametrize("name", REQUIRED)
def test_the_bundle_has_what_the_model_zoo_asks_for(repository: Path, name: str) -> None:
    assert (repository / "bundle" / name).stat().st_size > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_indented_by_four(repository: Path, name: str) -> None:
    text = (repository / "bundle" / "configs" / f"{name}.json").read_text(encoding="utf-8")
    indents = [len(line) - len(line.lstrip(" ")) for line in text.splitlines()]
    assert all(indent % 4 == 0 for indent in indents)
    assert json.loads(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_hold_nothing_unsafe(repository: Path, name: str) -> None:
    text = (repository / "bundle" / "configs" / f"{name}.json").read_text(encoding="utf-8")
    assert not re.search(r"torch\.load|torch\.hub|lambda|/home/|/root/", text)


def test_the_metadata_meets_the_zoos_schema(repository: Path, tmp_path: Path) -> None:
    default = repository.parent / "shared" / "schemas" / "meta_schema_20240725.json"
    schema = Path(os.environ.get("MONAI_META_SCHEMA", default))
    if not schema.is_file():
        pytest.skip(f"no metadata schema at {schema}; set MONAI_META_SCHEMA to run this test")
    command = [sys.executable, "-m", "monai.bundle", "verify_metadata", "--filepath", str(schema)]
    command += ["--meta_file", str(repository / "bundle" / "configs" / "metadata.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stdout + done.stderr


def test_the_metadata_names_the_pinned_versions(repository: Path) -> None:
    metadata = json.loads((repository / "bundle" / "configs" / "metadata.json").read_text())
    pins = dict(line.strip().lower().split("==") for line in (repository / "constraints.txt").read_text().splitlines())
    pins = {name.replace("_", "-"): pin for name, pin in pins.items()}
    own = {"nodule-plugin": version("nodule-plugin")}
    for name, wanted in metadata["required_packages_version"].items():
        assert (pins | own)[name] == wanted
    assert metadata["version"] in metadata["changelog"]
    assert metadata["monai_version"] == pins["monai"]
    assert metadata["pytorch_version"] == pins["torch"]
    assert metadata["numpy_version"] == pins["numpy"]


def test_the_shipped_models_are_small(repository: Path) -> None:
    files = [path for path in (repository / "bundle" / "models").rglob("*") if path.is_file()]
    sizes = {path.name: path.stat().st_size for path in files}
    assert max(sizes.values()) < 25 * MEGABYTE
    base = [path.stat().st_size for path in (repository / "bundle" / "models" / "tiny").rglob("*") if path.is_file()]
    assert sum(base) < 40 * MEGABYTE
    assert sum(path.stat().st_size for path in files) < 60 * MEGABYTE
