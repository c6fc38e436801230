from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nodule_plugin.cli.tools import package
from nodule_plugin.errors import InputError
from nodule_plugin.packaging import BUNDLE_NAME, package_bundle

PACKAGE_DATA = {".html", ".css", ".js", ".png", ".typed"}


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_bundle(repository / "bundle", tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder)
    return folder / BUNDLE_NAME


def a_bundle(repository: Path, folder: Path) -> Path:
    """A copy without the models, which are large."""
    bundle = folder / "bundle"
    shutil.copytree(repository / "bundle", bundle, ignore=shutil.ignore_patterns("models", "output"))
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    return bundle


def python(code: str, *, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def test_the_same_files_give_the_same_bytes(
    repository: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(repository / "bundle", checkout / "bundle")
    for path in sorted((checkout / "bundle").rglob("*"), reverse=True):  # another place, order, time and permissions
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    package(["--output", str(tmp_path / "again"), "--bundle", str(checkout / "bundle")])
    again = Path(capsys.readouterr().out.strip())
    assert again.name == built.name
    assert again.read_bytes() == built.read_bytes()


def test_sums_name_every_file(built: Path, unpacked: Path) -> None:
    digest, name = built.with_name(f"{built.name}.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(built.read_bytes()).hexdigest(), built.name)
    lines = [line.split("  ") for line in (unpacked / "SHA256SUMS").read_text().splitlines()]
    assert all(hashlib.sha256((unpacked / name).read_bytes()).hexdigest() == digest for digest, name in lines)
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert files == {name for _, name in lines} | {"SHA256SUMS"}


def test_the_zip_holds_the_bundle_and_the_whole_package(repository: Path, unpacked: Path) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {"LICENSE", "configs/metadata.json", "configs/inference.json", "configs/train.json", "docs/README.md",
            "docs/data_license.txt", "large_files.yml", "models/model.pt"} <= names  # fmt: skip
    package = (path for path in (repository / "nodule_plugin").rglob("*") if "__pycache__" not in path.parts)
    assert {path.relative_to(repository).as_posix() for path in package if path.is_file()} <= names
    assert not any(name.endswith(".pyc") for name in names)


def test_what_lies_about_stays_out(repository: Path, tmp_path: Path) -> None:
    bundle = a_bundle(repository, tmp_path)
    for name in ("output/models/model.pt", "eval/schema.json", "models/.model.pt.part", "configs/__pycache__/a.pyc"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("x")
    with zipfile.ZipFile(package_bundle(bundle, tmp_path)) as archive:
        names = archive.namelist()
    assert f"{BUNDLE_NAME}/models/model.pt" in names
    assert not [name for name in names if "output/" in name or "eval/" in name or "/." in name or "__pycache__" in name]


@pytest.mark.parametrize("name", ["models/link.pt", "docs/link"])
def test_links_are_not_followed(name: str, repository: Path, tmp_path: Path) -> None:
    bundle, private = a_bundle(repository, tmp_path), tmp_path / "private"
    private.mkdir()
    (private / "key.txt").write_text("secret")
    (bundle / name).symlink_to(private / "key.txt" if name.endswith(".pt") else private)
    with pytest.raises(InputError, match=rf"{name}: a link"):
        package_bundle(bundle, tmp_path)
    assert not list(tmp_path.glob("*.zip*"))


@pytest.mark.parametrize("name", ["configs/train.json~", "docs/notes.docx", "models/optimizer.pth", "configs/key.pem"])
def test_files_of_other_kinds_are_refused(name: str, repository: Path, tmp_path: Path) -> None:
    bundle = a_bundle(repository, tmp_path)
    (bundle / name).write_text("x")
    with pytest.raises(InputError, match=rf"{name}: no kind of file that belongs in a bundle"):
        package_bundle(bundle, tmp_path)


def test_a_checkout_ships_only_what_is_under_version_control(repository: Path, tmp_path: Path) -> None:
    bundle = a_bundle(repository, tmp_path)
    for arguments in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-C", str(bundle), *arguments], check=True)
    assert package_bundle(bundle, tmp_path).is_file()
    (bundle / "configs" / "mine.json").write_text("{}")
    with pytest.raises(InputError, match=r"configs/mine\.json: not under version control; add it, or remove it"):
        package_bundle(bundle, tmp_path)


def test_a_large_file_must_be_listed_and_then_stays_out(repository: Path, tmp_path: Path) -> None:
    bundle = a_bundle(repository, tmp_path)
    with (bundle / "models" / "large.pt").open("wb") as file:
        file.truncate(25 * 2**20 + 1)
    with pytest.raises(InputError, match=r"large\.pt: larger than 25 MB; upload it and name it in .*large_files\.yml"):
        package_bundle(bundle, tmp_path)
    assert not list(tmp_path.glob("*.zip*"))
    (bundle / "large_files.yml").write_text(
        "large_files:\n- path: models/large.pt\n  url: https://example.org/large.pt\n"
    )
    with zipfile.ZipFile(package_bundle(bundle, tmp_path)) as archive:
        assert f"{BUNDLE_NAME}/models/large.pt" not in archive.namelist()


def test_versions_must_agree(repository: Path, tmp_path: Path) -> None:
    bundle = a_bundle(repository, tmp_path)
    metadata = bundle / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "version": "9.9.9"}))
    with pytest.raises(InputError, match=r"metadata\.json: version '9\.9\.9' is not that of the package"):
        package_bundle(bundle, tmp_path)


@pytest.mark.parametrize("missing", ["LICENSE", "docs", "configs/metadata.json"])
def test_a_missing_part_is_named(repository: Path, tmp_path: Path, missing: str) -> None:
    bundle = a_bundle(repository, tmp_path)
    path = bundle / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=missing):
        package_bundle(bundle, tmp_path)


IMPORTED_FROM = """
import sys
from pathlib import Path
plugin = [module for name, module in sys.modules.items() if name.partition(".")[0] == "nodule_plugin"]
assert len(plugin) > 10
outside = [module.__file__ for module in plugin if not Path(module.__file__).resolve().is_relative_to({folder!r})]
assert not outside, outside
"""


def test_the_unpacked_bundle_generates_with_its_own_package(unpacked: Path, tmp_path: Path) -> None:
    code = f"""
import monai.bundle
monai.bundle.run(config_file={str(unpacked / "configs" / "inference.json")!r}, bundle_root={str(unpacked)!r},
                 prompts="a round nodule", guidance_scales=2, steps=2, output_dir="made")
""" + IMPORTED_FROM.format(folder=str(unpacked.resolve()))
    done = python(code, cwd=tmp_path, PYTHONPATH=str(unpacked))
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    weights = hashlib.sha256((unpacked / "models" / "model.pt").read_bytes()).hexdigest()
    assert manifest["model"]["weights_sha256"] == weights
    assert len(list((tmp_path / "made").rglob("*.png"))) == 1


def test_monai_downloads_and_loads_it(built: Path, unpacked: Path, tmp_path: Path) -> None:
    code = f"""
import os, torch
from monai.bundle import download, load
download(name={BUNDLE_NAME!r}, url={built.resolve().as_uri()!r}, bundle_dir=".", progress=False)
os.chdir({BUNDLE_NAME!r})
network = load(name={BUNDLE_NAME!r}, bundle_dir="..", workflow_type="inference", device="cpu")
weights = torch.load("models/model.pt", weights_only=True)
assert weights.keys() == network.state_dict().keys()
assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
latents = torch.zeros(1, network.unet.config.in_channels, 32, 32)
assert network(latents).shape == latents.shape
""" + IMPORTED_FROM.format(folder=str((tmp_path / BUNDLE_NAME).resolve()))
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / BUNDLE_NAME / "SHA256SUMS").read_bytes() == (unpacked / "SHA256SUMS").read_bytes()


def test_a_wheel_holds_every_file_of_the_package(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(repository / "nodule_plugin", source / "nodule_plugin", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as archive:
        names = set(archive.namelist())
    wanted = {path.relative_to(source).as_posix() for path in (source / "nodule_plugin").rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in wanted} >= PACKAGE_DATA
    assert wanted <= names
