"""A study's folder: its description, its images, the digests of the readers' links, the answers. Not its key."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json, write_json

FORMAT = "nodule-plugin reader study"
VERSION = 1
STUDY_FILE, LINKS_FILE, ANSWERS_FILE, IMAGES = "study.json", "links.json", "answers.sqlite3", "images"
_FIELDS = ("id", "title", "size", "window_hu", "phantoms", "plan", "readers", "commitment")


@dataclass(frozen=True)
class Step:
    """One image in a reader's sequence.

    Attributes:
        number: from 1, practice included.
        image: the image's id.
        practice: True where the answer does not count.
    """

    number: int
    image: str
    practice: bool


@dataclass(frozen=True)
class Plan:
    """How the answers are going to be judged, fixed when the study is sealed.

    Attributes:
        margin: in points of a scale: mean scores that differ by less are equivalent.
        auc_margin: an area under the curve nearer than this to 0.5 counts as "cannot be told apart".
        alpha: error rate of each test; intervals cover 1 - alpha, those of equivalence 1 - 2 alpha.
        primary: the item that the conclusion rests on.
    """

    margin: float = 0.5
    auc_margin: float = 0.1
    alpha: float = 0.05
    primary: str = "realism"


@dataclass(frozen=True)
class Study:
    """A study as it lies on disk.

    Attributes:
        folder: of the study.
        content: of ``study.json``.
    """

    folder: Path
    content: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """The study's description."""
        return self.folder / STUDY_FILE

    @property
    def answers_file(self) -> Path:
        """The database of answers."""
        return self.folder / ANSWERS_FILE

    @property
    def commitment(self) -> str:
        """SHA-256 of the key's file."""
        return str(self.content["commitment"]["sha256"])

    @property
    def plan(self) -> Plan:
        """How the answers are going to be judged."""
        return Plan(**self.content["plan"])

    @property
    def rehearsal(self) -> bool:
        """Whether the cases were drawn from a seed; then somebody can have chosen them."""
        return bool(self.content.get("rehearsal", False))

    @property
    def keyed_answers(self) -> bool:
        """Whether the database of answers was made, with its first key, when the study was sealed."""
        return bool(self.content.get("keyed_answers", False))

    @property
    def readers(self) -> list[str]:
        """The readers' names."""
        return list(self.content["readers"])

    @cached_property
    def sequences(self) -> dict[str, list[Step]]:
        """Reader -> the images in the order that the reader sees them."""
        sequences = {}
        for reader, order in self.content["readers"].items():
            shown = [(image, True) for image in order["practice"]] + [(image, False) for image in order["images"]]
            sequences[reader] = [Step(number, *step) for number, step in enumerate(shown, start=1)]
        return sequences

    def image_file(self, image: str) -> Path:
        """The file of an image."""
        return self.folder / IMAGES / f"{image}.png"

    def read_image(self, image: str) -> bytes:
        """An image's file as it was written.

        Raises:
            InputError: if it cannot be read, or is damaged.
        """
        path = self.image_file(image)
        try:
            content = path.read_bytes()
            Image.open(io.BytesIO(content), formats=["PNG"]).verify()
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for what is no PNG
            raise InputError(f"study: {path} cannot be shown ({error}); restore the file") from error
        return content


def load_study(folder: str | Path) -> Study:
    """Read a study's description and check that all of its images are there.

    Raises:
        InputError: if the folder is not a whole study.
    """
    path = Path(folder) / STUDY_FILE
    content = read_json(path, "give the folder that design wrote")
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise InputError(f"study: {path} is not a reader study of this release; give the folder that design wrote")
    if missing := [name for name in _FIELDS if name not in content]:
        raise InputError(f"study: {path}: field {missing[0]!r} is missing; restore the file that design wrote")
    study = Study(Path(folder), content)
    try:
        steps = [step for steps in study.sequences.values() for step in steps]
        _ = study.plan, study.commitment
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"study: {path} is damaged ({error!r}); restore the file that design wrote") from error
    for step in steps:
        if not study.image_file(step.image).is_file():
            raise InputError(f"study: there is no image {study.image_file(step.image)}; restore the file")
    return study


def new_links(readers: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """A personal secret for each reader.

    Returns:
        reader -> secret (256 random bits, for the reader alone), and reader -> its SHA-256, which the study keeps.
    """
    secrets_of = {reader: secrets.token_urlsafe(32) for reader in readers}
    return secrets_of, {reader: hash_secret(secret) for reader, secret in secrets_of.items()}


def hash_secret(secret: str) -> str:
    """SHA-256 of a reader's secret. It is random and long, so that a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read_links(study: Study) -> dict[str, str]:
    """Digest of a secret -> reader.

    Raises:
        InputError: if there is no such file, or it names other readers.
    """
    path = study.folder / LINKS_FILE
    digests = read_json(path, "make new links with the command 'link'")
    if not isinstance(digests, dict) or not set(digests) <= set(study.readers):
        raise InputError(f"study: {path} does not fit the study's readers; make new links with the command 'link'")
    return {digest: reader for reader, digest in digests.items()}


def replace_link(study: Study, reader: str) -> str:
    """Give a reader a new secret; the old one is worthless from then on.

    Returns:
        The new secret.

    Raises:
        InputError: if there is no such reader.
    """
    if reader not in study.readers:
        raise InputError(f"reader: there is no {reader!r}; the study's readers are {', '.join(study.readers)}")
    digests = {name: digest for digest, name in read_links(study).items()}
    secret, digest = new_links([reader])
    write_json(study.folder / LINKS_FILE, {**digests, **digest})
    return secret[reader]
