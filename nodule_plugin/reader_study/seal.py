"""The sealed key: which image is what, kept from everybody until the answers are in, and provably not changed since.

A study publishes the SHA-256 of its key file (the commitment). The file holds a random nonce, so that the digest tells
nothing about the key, and the digests of the study's own description and of every image, so that whoever opens the seal
can check that images, order and analysis plan are the ones that were sealed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.study import Study

FORMAT = "nodule-plugin reader study key"
VERSION = 1
REAL_ARM = "real"


@dataclass(frozen=True)
class Sealed:
    """What the key says of one image.

    Attributes:
        arm: "real" or the name of the model that made it.
        case: number of the findings that the image shows: one real image and one of each model share a case.
        repeat_of: id of the image that this one shows again, None of a first showing.
        practice: True of an image to practise with.
        sha256: of the image's file.
        origin: which image of the data list or the generated set it is.
    """

    arm: str
    case: int
    repeat_of: str | None
    practice: bool
    sha256: str
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """A key that has been opened.

    Attributes:
        arms: "real" first, then the models.
        images: id of an image -> what it is.
        blinding: what :mod:`.cues` measured; None in studies of earlier releases.
        answers_key: with which the chain of answers starts; None likewise.
    """

    arms: tuple[str, ...]
    images: Mapping[str, Sealed]
    blinding: Mapping[str, Any] | None = None
    answers_key: bytes | None = None


def encode_key(study: Mapping[str, Any], key: Key) -> bytes:
    """The key's file.

    Args:
        study: the study's description, without the commitment.
        key: the key.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "study": study["id"],
        "nonce": secrets.token_hex(32),
        "study_sha256": digest_of_study(study),
        "arms": list(key.arms),
        "images": {name: vars(sealed) for name, sealed in sorted(key.images.items())},
        "blinding": key.blinding,
        "answers_key": None if key.answers_key is None else key.answers_key.hex(),
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def commitment(key: bytes) -> str:
    """What is published of a key file: its SHA-256, as ``sha256sum`` prints it."""
    return hashlib.sha256(key).hexdigest()


def digest_of_study(study: Mapping[str, Any]) -> str:
    """SHA-256 of a study's description as JSON with sorted names and no spaces, the commitment left out."""
    content = {name: value for name, value in study.items() if name != "commitment"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def open_key(path: str | Path, study: Study) -> Key:
    """Read a key and verify that it, the study's description and the images are those that were sealed.

    Raises:
        InputError: naming what is missing or was changed.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError) as error:
        raise InputError(f"key: {file} cannot be read as JSON: {error}; give the file that design wrote") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise InputError(f"key: {file} is not a key of this release; give the file that design wrote")
    if commitment(raw) != study.commitment:
        raise InputError(
            f"key: {file} has SHA-256 {commitment(raw)}, the study was sealed with {study.commitment}; "
            "it is another study's key, or it was changed"
        )
    if digest_of_study(study.content) != content["study_sha256"]:
        raise InputError(f"{study.file}: was changed after it was sealed; restore the file that design wrote")
    images = {name: Sealed(**sealed) for name, sealed in content["images"].items()}
    for name, sealed in images.items():
        image = study.image_file(name)
        if not image.is_file() or hashlib.sha256(image.read_bytes()).hexdigest() != sealed.sha256:
            raise InputError(f"{image}: missing or changed after it was sealed; restore the file that design wrote")
    answers_key = content.get("answers_key")
    return Key(
        tuple(content["arms"]),
        images,
        content.get("blinding"),
        None if answers_key is None else bytes.fromhex(answers_key),
    )
