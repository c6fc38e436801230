"""What diffusers' train_text_to_image.py uses of Hugging Face's ``datasets``, where that is not installed.

It needs pyarrow, four times as large as all else that a bare machine lacks. Images are opened and turned by the
script's own transforms as there; only the table's reading is missing, which makes the script no slower.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

utils = SimpleNamespace(logging=SimpleNamespace(set_verbosity_warning=lambda: None, set_verbosity_error=lambda: None))


class ImageFolder:
    """Images and their texts, as ``metadata.jsonl`` names them.

    Args:
        folder: of both.
        transform: from a batch's columns to a batch's columns.
    """

    column_names = ("image", "text")

    def __init__(self, folder: Path, transform: Callable[[dict[str, list]], dict[str, list]] = dict) -> None:
        self.folder = folder
        self.transform = transform
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]

    def with_transform(self, transform: Callable[[dict[str, list]], dict[str, list]]) -> ImageFolder:
        """The same images through ``transform``."""
        return ImageFolder(self.folder, transform)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows = [self.rows[index] for index in indices]
        images = [Image.open(self.folder / row["file_name"]) for row in rows]
        batch = self.transform({"image": images, "text": [row["text"] for row in rows]})
        return [{name: column[at] for name, column in batch.items()} for at in range(len(rows))]


def load_dataset(kind: str, data_files: Mapping[str, str], **options: Any) -> dict[str, ImageFolder]:
    """The folder that ``data_files["train"]``, which ends in ``**``, stands for."""
    logging.getLogger(__name__).info("%s without the datasets package", kind)
    return {"train": ImageFolder(Path(data_files["train"]).parent)}
