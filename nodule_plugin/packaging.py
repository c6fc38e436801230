"""The bundle as one zip in the Model Zoo's layout, with this package inside, the same bytes every time."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from monai.bundle import ConfigParser

import nodule_plugin
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing, write_text_atomically

BUNDLE_NAME = "lung_nodule_ct_text_to_image"
SUMS = "SHA256SUMS"
LARGE_FILE_BYTES = 25 * 2**20
"""What is larger does not belong in the zip but in ``large_files.yml``, by the Model Zoo's rule."""

_CONTENT = ("LICENSE", "configs", "docs", "large_files.yml", "models")
_KINDS = frozenset({"", ".conf", ".json", ".md", ".png", ".pt", ".safetensors", ".txt", ".yml"})
_PACKAGE_KINDS = frozenset({".css", ".html", ".js", ".json", ".md", ".png", ".py", ".typed"})
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip can tell
_READABLE_FILE = 0o100644 << 16
_UNIX = 3


def package_bundle(bundle: str | Path, output_dir: str | Path, name: str = BUNDLE_NAME) -> Path:
    """Write ``NAME_vVERSION.zip`` and, beside it, its SHA-256 sum in a file for ``sha256sum --check``.

    The zip holds one folder ``NAME``: the bundle's configurations, documents and models, the package ``nodule_plugin``,
    and ``SHA256SUMS`` of all of these. Whatever else lies in the bundle's folder (outputs, caches, hidden files) stays
    out; links, files of other kinds and, in a git checkout, files that are not under version control are refused: a
    release must not ship what happens to lie about. The same files give the same zip: names are sorted, times,
    permissions and the writing system are fixed, and nothing is compressed, since the result of compressing depends on
    zlib's version.

    Args:
        bundle: the bundle's folder.
        output_dir: made where there is none.
        name: of the bundle, which the Model Zoo also uses for the folder in the zip.

    Returns:
        The zip's path.

    Raises:
        InputError: if something of the bundle is missing or does not belong there, its version is not the package's, a
            file is too large and not in ``large_files.yml``, or the zip cannot be written.
    """
    bundle, plugin = Path(bundle), Path(nodule_plugin.__file__).parent
    version = _version(bundle)
    files = {path.relative_to(bundle).as_posix(): path for name in _CONTENT for path in _files(bundle / name, _KINDS)}
    if stray := sorted(_untracked(bundle) & set(files)):
        raise InputError(f"{bundle / stray[0]}: not under version control; add it, or remove it")
    files |= {f"nodule_plugin/{path.relative_to(plugin).as_posix()}": path for path in _files(plugin, _PACKAGE_KINDS)}
    for large in _large_files(bundle):
        files.pop(large, None)
    for file in files.values():
        if file.stat().st_size > LARGE_FILE_BYTES:
            raise InputError(f"{file}: larger than 25 MB; upload it and name it in {bundle / 'large_files.yml'}")
    path = Path(output_dir) / f"{name}_v{version}.zip"
    try:
        _write_zip(path, name, files)
        digest = sha256(path.read_bytes()).hexdigest()
        write_text_atomically(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n")
    except OSError as error:
        raise InputError(f"output: {path} cannot be written ({error.strerror}); give a folder") from error
    return path


def _version(bundle: Path) -> str:
    metadata = bundle / "configs" / "metadata.json"
    try:
        version = json.loads(metadata.read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"bundle: {metadata} cannot be read, or has no 'version'; give a bundle's folder") from error
    if version != nodule_plugin.__version__:
        raise InputError(
            f"{metadata}: version {version!r} is not that of the package within, {nodule_plugin.__version__!r}"
        )
    return version


def _files(path: Path, kinds: frozenset[str]) -> Iterator[Path]:
    """``path`` or the files in it, without caches and hidden ones.

    Raises:
        InputError: if there is none, or one is a link or of a kind that is not in ``kinds`` (suffixes).
    """
    if path.is_symlink():
        raise InputError(f"{path}: a link; put the file itself there, or remove it")
    if path.is_dir():
        for child in path.iterdir():
            if not child.name.startswith(".") and child.name != "__pycache__" and child.suffix != ".pyc":
                yield from _files(child, kinds)
    elif not path.is_file():
        raise InputError(f"bundle: there is no file {path}")
    elif path.suffix not in kinds:
        raise InputError(f"{path}: no kind of file that belongs in a bundle; remove it")
    else:
        yield path


def _untracked(folder: Path) -> set[str]:
    """The files in ``folder`` that git does not track; none where it is no checkout."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--others"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    except FileNotFoundError:
        return set()
    if done.returncode != 0 and "not a git repository" not in done.stderr:
        raise InputError(f"{folder}: git cannot tell its files: {done.stderr.strip().splitlines()[0]}")
    return set(filter(None, done.stdout.split("\0")))


def _large_files(bundle: Path) -> set[str]:
    return {entry["path"] for entry in ConfigParser.load_config_file(bundle / "large_files.yml")["large_files"]}


def _write_zip(path: Path, name: str, files: dict[str, Path]) -> None:
    sums = []
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for inner in sorted(files):
            content = files[inner].read_bytes()
            sums.append(f"{sha256(content).hexdigest()}  {inner}\n")
            archive.writestr(_entry(f"{name}/{inner}"), content)
        archive.writestr(_entry(f"{name}/{SUMS}"), "".join(sums))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EARLIEST)
    entry.create_system, entry.external_attr = _UNIX, _READABLE_FILE
    return entry
