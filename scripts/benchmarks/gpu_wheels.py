"""Make wheels small, and see that they and a checkout are small enough to be brought along. Needs only Python.

python scripts/benchmarks/gpu_wheels.py CHECKOUT WHEELS [FURTHER ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

LIMIT = 60 * 2**20
LEFT_OUT = {
    "bitsandbytes": re.compile(r"bitsandbytes/libbitsandbytes_(?!cpu|cuda130)"),  # torch 2.11 there is of CUDA 13.0
    "nibabel": re.compile(r"nibabel/([\w/]+/)?tests/"),
}
"""Project -> files of its wheel that stay behind: builds for other GPUs, tests."""
AT_HOME = (
    "/bundle/models/few_steps/",
    "/bundle/models/inpainter/",
    "/bundle/models/model.pt",
    "/bundle/models/tiny_scorer/",
    "/docs/images/",
    "/tests/",
)
"""What a checkout on the GPU's machine does without."""


def thin_wheel(wheel: Path, left_out: re.Pattern[str]) -> None:
    """Rewrite a wheel without the files whose names begin as ``left_out`` says; its RECORD names them no more."""
    thinner = wheel.with_suffix(".thin")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(thinner, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for entry in old.infolist():
            if left_out.match(entry.filename):
                continue
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if not left_out.match(line)).encode()
            new.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    thinner.replace(wheel)


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of files and of all files below folders; what is not there counts nothing."""
    return sum(
        file.stat().st_size
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file() and not file.is_symlink()
    )


def travelling(checkout: Path) -> list[Path]:
    """The files of a checkout that git knows, or would take, and that are there."""
    command = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [checkout / name for name in names if name]


def check_size(checkout: Path, further: Iterable[Path], limit: int = LIMIT) -> str:
    """What travels, in a line.

    Raises:
        SystemExit: if it is larger than the limit; with what to leave at home.
    """
    own = {path.resolve() for path in travelling(checkout)}
    others = {file.resolve() for path in further for file in ([path] if path.is_file() else path.rglob("*"))} - own
    parts = size_of(own), size_of(others)
    mebibytes = "checkout {:.1f} MiB, wheels and further files {:.1f} MiB".format(*(part / 2**20 for part in parts))
    if sum(parts) <= limit:
        return f"{mebibytes}: within {limit / 2**20:.0f} MiB"
    patterns = " ".join(f"'!{path}'" for path in AT_HOME)
    raise SystemExit(
        f"{mebibytes}: more than {limit / 2**20:.0f} MiB. Leave at home what a GPU does not need:\n"
        f"    git sparse-checkout set --no-cone '/*' {patterns}\n"
        "(git sparse-checkout disable brings it back)"
    )


def main() -> None:
    """Thin the wheels, print what travels."""
    checkout, wheels, *further = map(Path, sys.argv[1:])
    for project, left_out in LEFT_OUT.items():
        for wheel in wheels.glob(f"{project}-*.whl"):
            thin_wheel(wheel, left_out)
    print(check_size(checkout, [wheels, *further]))


if __name__ == "__main__":
    main()
