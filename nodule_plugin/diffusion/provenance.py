"""What weights learnt from: a small file beside them says how their training images were cut."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nodule_plugin.data.transforms import NoduleROId
from nodule_plugin.errors import InputError
from nodule_plugin.files import write_text_atomically


def write_preprocessing(weights: str | Path, preprocessing: NoduleROId) -> Path:
    """Write ``model.json`` beside ``model.pt``: image size, window, kernel and chain of the training images.

    Returns:
        The file.
    """
    file = Path(weights).with_suffix(".json")
    write_text_atomically(file, json.dumps(asdict(preprocessing), indent=4) + "\n")
    return file


def read_preprocessing(weights: str | Path) -> dict[str, Any] | None:
    """How the images were cut which weights learnt from: what :func:`write_preprocessing` has written.

    Args:
        weights: file of a state dict; there need not be one of this name ("base"). Only beside this package's own,
            which end in .pt, such a file is looked for: other programs keep other things beside theirs.

    Returns:
        ``chain``, ``image_size``, ``window_hu`` and ``kernel``; None where nothing beside the weights says so.

    Raises:
        InputError: if the file beside them is damaged.
    """
    file = Path(weights).with_suffix(".json")
    if Path(weights).suffix != ".pt" or not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        content["chain"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"weights: {file} does not name a chain ({error!r}); restore it or remove it") from error
    return content


def weights_chain(weights: str | Path) -> str | None:
    """The chain that cut the images which weights learnt from, see :func:`nodule_plugin.data.transforms.chain_id`."""
    preprocessing = read_preprocessing(weights)
    return None if preprocessing is None else str(preprocessing["chain"])
