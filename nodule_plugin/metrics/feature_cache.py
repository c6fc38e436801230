"""Features on disk: each image and each extractor once, whoever asks and however often.

An image is known by the SHA-256 of its 8-bit pixels, an extractor by its fingerprint (a hash of its weights and
preprocessing). A folder holds, for each extractor, files of a few hundred images' features, named by the SHA-256 of
their own bytes: several processes can write at the same time, and a damaged file does not bear its name any more, is
deleted, and its images are encoded anew.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.feature_rows import FeatureRows
from nodule_plugin.errors import InputError
from nodule_plugin.files import write_bytes_atomically
from nodule_plugin.weights import file_sha256

SUFFIX = ".npy"
IMAGES_PER_FILE = 512
BATCH = 64
_logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """What turns images into features.

    Attributes:
        name: in words.
        id: tells within a run which encoders are one and the same; loads nothing.
        fingerprint: tells between runs: a hash of the weights and of what is done to an image before them. May load.
    """

    @property
    def name(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...


def image_key(image: Tensor) -> bytes:
    """The name of an image in a cache: SHA-256 of its shape and bytes.

    Args:
        image: (3, H, W) uint8.
    """
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().numpy().data)
    return digest.digest()


class FeatureCache:
    """The features of one extractor.

    Args:
        folder: of the cache; one folder serves all extractors. Made with the first file.
        encoder: whose features these are.
    """

    def __init__(self, folder: str | Path, encoder: Encoder) -> None:
        self.encoder = encoder
        self.folder = Path(folder) / encoder.fingerprint
        self._pending: dict[bytes, np.ndarray] = {}
        self._files: list[np.ndarray] = []
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._known: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take up what other processes have written since."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name.startswith(".") or path.name in self._known:
                continue
            if file_sha256(path) != path.stem:
                _logger.warning("%s is damaged; it is deleted and its images are encoded again", path)
                path.unlink(missing_ok=True)
                continue
            rows = np.load(path, mmap_mode="r")
            self._rows.update({bytes(key): (len(self._files), row) for row, key in enumerate(rows["key"])})
            self._files.append(rows)
            self._known.add(path.name)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows or key in self._pending

    def __len__(self) -> int:
        return len(self._rows) + len(self._pending)

    def encode(self, images: Sequence[Tensor], keys: Sequence[bytes]) -> int:
        """Encode those of the images that are not in the cache yet.

        Args:
            images: (3, H, W) uint8, of any sizes.
            keys: their :func:`image_key`.

        Returns:
            How many were encoded.

        Raises:
            InputError: if a feature is not finite, or the cache cannot be written.
        """
        missing = {key: image for key, image in zip(keys, images) if key not in self}
        by_size: dict[torch.Size, list[bytes]] = {}
        for key, image in missing.items():
            by_size.setdefault(image.shape, []).append(key)
        for names in by_size.values():
            rows = self.encoder(torch.stack([missing[key] for key in names]).float() / 127.5 - 1.0)
            if not bool(torch.isfinite(rows).all()):
                raise InputError(f"{self.encoder.id}: features that are not finite; check the images and the weights")
            self._pending.update(zip(names, rows.float().numpy()))
        if len(self._pending) >= IMAGES_PER_FILE:
            self.flush()
        return len(missing)

    def flush(self) -> None:
        """Write what was encoded.

        Raises:
            InputError: if the folder cannot be written.
        """
        if not self._pending:
            return
        dimensions = len(next(iter(self._pending.values())))
        table = np.empty(len(self._pending), dtype=[("key", "V32"), ("features", "<f4", (dimensions,))])
        table["key"] = list(self._pending)
        table["features"] = list(self._pending.values())
        content = io.BytesIO()
        np.save(content, table)
        name = hashlib.sha256(content.getvalue()).hexdigest()
        try:
            write_bytes_atomically(self.folder / f"{name}{SUFFIX}", content.getvalue())
        except OSError as error:
            raise InputError(f"cache_dir: {self.folder} cannot be written ({error}); give another folder") from error
        self._pending.clear()
        self.refresh()

    def rows(self, keys: Sequence[bytes]) -> FeatureRows:
        """The features of these images, in this order, left on disk until they are read.

        Raises:
            KeyError: if one is not in the cache.
        """
        self.flush()
        return FeatureRows(_CachedRows(self._files, np.array([self._rows[key] for key in keys]).reshape(-1, 2)))

    def features_of(self, images: Iterable[Tensor], description: str | None = None) -> FeatureRows:
        """The features of (3, H, W) uint8 images, from the cache where they are in it; a batch in memory at a time."""
        keys: list[bytes] = []
        stream = iter(tqdm(images, desc=description, leave=False, delay=2))
        while batch := list(islice(stream, BATCH)):
            names = [image_key(image) for image in batch]
            self.encode(batch, names)
            keys += names
        return self.rows(keys)


class _CachedRows:
    """Rows of several memory-mapped files as one table."""

    def __init__(self, files: list[np.ndarray], where: np.ndarray) -> None:
        self._files, self._where = files, where  # (N, 2) file and row in it

    @property
    def shape(self) -> tuple[int, int]:
        dimensions = self._files[self._where[0, 0]]["features"].shape[1] if len(self._where) else 0
        return len(self._where), dimensions

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        wanted = self._where[indices]
        rows = np.empty((len(wanted), self.shape[1]), np.float32)
        for file in np.unique(wanted[:, 0]):
            chosen = np.flatnonzero(wanted[:, 0] == file)
            rows[chosen] = self._files[file]["features"][wanted[chosen, 1]]
        return rows
