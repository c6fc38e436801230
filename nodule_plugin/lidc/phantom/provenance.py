"""What every phantom folder says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom.uid import generate_uid

from nodule_plugin import __version__
from nodule_plugin.files import write_json
from nodule_plugin.lidc.citation import CITATION, LICENCE, LICENCE_URL

NOTICE = (
    "Synthetic CT drawn around real annotations; no pixel is a patient's. For research use only; not for diagnosis. "
    "No result on these images is a result on patients."
)
DERIVED = f"Outlines and ratings are derived from LIDC-IDRI, {LICENCE} ({LICENCE_URL})"


def write_sidecar(folder: Path, seed: int, **content: Any) -> None:
    """Write ``dataset.json``: that the folder is synthetic, from which seed, and whose annotations it rests on."""
    dataset = {
        "source": "phantom",
        "synthetic": True,
        "seed": seed,
        **content,
        "version": __version__,
        "notice": NOTICE,
        "licence": DERIVED,
        "citation": list(CITATION),
    }
    write_json(folder / "dataset.json", dataset)


def phantom_uid(kind: str, source: str, seed: int) -> str:
    """A UID of our own for the phantom of something real: the same for the same seed, unlike any real one.

    Args:
        kind: "study", "series", "instance" and so on.
        source: names the real thing, such as its UID.
        seed: the phantom's.
    """
    return str(generate_uid(entropy_srcs=["nodule-plugin phantom", kind, source, str(seed)]))
