"""What every phantom folder says about itself, and how it comes to be all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.uid import generate_uid

from nodule_plugin import __version__
from nodule_plugin.errors import InputError
from nodule_plugin.files import remove_leftovers, temporary_name

NOTICE = (
    "Synthetic CT drawn around real annotations; no pixel is a patient's. For research use only; not for diagnosis. "
    "No result on these images is a result on patients."
)
LICENCE = "Outlines and ratings are derived from LIDC-IDRI, CC BY 3.0 (https://creativecommons.org/licenses/by/3.0/)"
CITATION = [
    "Armato SG III et al. (2015). Data From LIDC-IDRI. The Cancer Imaging Archive. doi:10.7937/K9/TCIA.2015.LO9QL9SX",
    "Armato SG III et al. (2011). The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative "
    "(IDRI): a completed reference database of lung nodules on CT scans. Med Phys 38:915-931.",
    "Clark K et al. (2013). The Cancer Imaging Archive (TCIA). J Digit Imaging 26:1045-1057.",
]


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``output`` when all is written, and vanishes on any error.

    Raises:
        InputError: if ``output`` is there and not an empty folder, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: already there and not an empty folder; choose another output folder or remove it")
    remove_leftovers(output.parent)
    partial = temporary_name(output)
    try:
        partial.mkdir(parents=True)
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # pydicom wraps it
        raise InputError(
            f"{output}: cannot be written ({cause.strerror or cause}); choose another output folder, or make room"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_sidecar(folder: Path, seed: int, **content: Any) -> None:
    """Write ``dataset.json``: that the folder is synthetic, from which seed, and whose annotations it rests on."""
    dataset = {
        "source": "phantom",
        "synthetic": True,
        "seed": seed,
        **content,
        "version": __version__,
        "notice": NOTICE,
        "licence": LICENCE,
        "citation": CITATION,
    }
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=4) + "\n", encoding="utf-8")


def phantom_uid(kind: str, source: str, seed: int) -> str:
    """A UID of our own for the phantom of something real: the same for the same seed, unlike any real one.

    Args:
        kind: "study", "series", "instance" and so on.
        source: names the real thing, such as its UID.
        seed: the phantom's.
    """
    return str(generate_uid(entropy_srcs=["nodule-plugin phantom", kind, source, str(seed)]))
