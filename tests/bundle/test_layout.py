from __future__ import annotations

import ast
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from packaging.requirements import Requirement
from warm import run_python

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[2] / "bundle" / "configs").glob("*.json"))
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
    done = run_python(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stdout + done.stderr


def test_the_metadata_names_the_pinned_versions(repository: Path) -> None:
    metadata = json.loads((repository / "bundle" / "configs" / "metadata.json").read_text())
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = {canonical(name): pin for name, pin in (line.strip().split("==") for line in lines)}
    for name, wanted in metadata["required_packages_version"].items():
        assert pins[name] == wanted
    assert metadata["version"] in metadata["changelog"]
    assert metadata["version"] == version("nodule-plugin")
    assert metadata["monai_version"] == pins["monai"]
    assert metadata["pytorch_version"] == pins["torch"]
    assert metadata["numpy_version"] == pins["numpy"]


def test_monai_reads_the_metadata_as_they_stand(repository: Path) -> None:
    """It puts what stands under older names in the place of what stands under the new ones."""
    file = repository / "bundle" / "configs" / "metadata.json"
    parser = ConfigParser({})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parser.read_meta(file)
        parser.parse()
    assert parser.get("_meta_") == json.loads(file.read_text())


def test_the_listed_packages_are_all_that_the_plugin_needs(repository: Path) -> None:
    metadata = json.loads((repository / "bundle" / "configs" / "metadata.json").read_text())
    needed = {"monai": set(), **{canonical(one.name): one.extras for one in requirements_of("nodule-plugin")}}
    extras = {canonical(one.name) for one in requirements_of("monai", needed["monai"])}
    listed = {"monai", "torch", "numpy", *metadata["required_packages_version"]}
    assert needed["monai"]
    assert (needed.keys() | extras) <= listed
    assert "nodule-plugin" not in listed  # no registry has it: it travels in the zip


def requirements_of(package: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """What an installed package requires, with these of its extras; without any, what it always requires."""
    found = [Requirement(line) for line in requires(package) or []]
    return [
        one for one in found if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_shipped_models_are_small(repository: Path) -> None:
    models = repository / "bundle" / "models"
    sizes = {path.relative_to(models): path.stat().st_size for path in models.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 25 * MEGABYTE
    generator = [size for path, size in sizes.items() if path.parts[0] in ("tiny", "model.pt", "few_steps")]
    assert sum(generator) < 40 * MEGABYTE
    assert sum(sizes.values()) < 70 * MEGABYTE


def test_the_revision_of_a_hub_id_is_a_commit(repository: Path) -> None:
    overlays = [json.loads(path.read_text()) for path in (repository / "bundle" / "configs").glob("sd*.json")]
    revisions = [overlay["revision"] for overlay in overlays if "revision" in overlay]
    assert len(overlays) == 3
    assert revisions  # a name such as "main" could mean other weights tomorrow
    assert all(re.fullmatch(r"[0-9a-f]{40}", revision) for revision in revisions)


def test_the_demo_uses_settings_that_exist(repository: Path) -> None:
    calls = [
        node
        for node in ast.walk(ast.parse((repository / "scripts" / "demo.py").read_text()))
        if isinstance(node, ast.Call)
    ]
    steps = {ast.literal_eval(call.args[1]): call.keywords for call in calls if ast.unparse(call.func) == "step"}
    assert list(steps) == ["prepare", "train", "inference", "evaluate"]
    for config, settings in steps.items():
        known = json.loads((repository / "bundle" / "configs" / f"{config}.json").read_text())
        assert {setting.arg for setting in settings} <= set(known), config
