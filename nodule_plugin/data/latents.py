"""The data set of a training run and its cache of latent distributions.

An autoencoder turns an image into the mean and the variance of its latents. Both depend on nothing but the image and
its orientation, so they are computed once, on first use, and kept in a memory-mapped file; training draws from them
anew at each step, as NVlabs/edm2 does (Karras et al., CVPR 2024, arXiv:2312.02696).
"""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from torch import Tensor

from nodule_plugin.data.order import SampleKey, sample_seed, seeded_generator
from nodule_plugin.data.transforms import ORIENTATIONS, orient
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json, replacing, write_json

_ENTRY = np.dtype([("entry", "<u4"), ("checksum", "<u4")])


class LatentCache:
    """Latent distributions of N images in each of the K = 8 orientations, in one memory-mapped file.

    The folder holds ``moments.bin`` (float32, N x K x the moments' shape), ``cache.json`` (what it is of) and a journal
    for each process that writes. An entry counts once its journal says so, with the checksum of its numbers: what was
    being written when a process was killed, damaged since, or written by another machine and not yet visible here, is
    missing, and encoded again. A batch of entries is added to the journal in one write.

    Args:
        folder: made where there is none. Where it holds a cache of something else, that is thrown away.
        fingerprint: of everything that decides the numbers: the autoencoder's weights, the images, their transforms.
        count: N, images.
        shape: of an entry: mean and log variance along the first axis, (2 C, h, w).

    Raises:
        InputError: if the folder cannot be written to or the disk has not the room.
    """

    def __init__(self, folder: str | Path, fingerprint: str, count: int, shape: Sequence[int]) -> None:
        self.folder = Path(folder)
        self.count, self.shape = count, tuple(int(size) for size in shape)
        self._label = {
            "format": "nodule-plugin latent moments",
            "version": 1,
            "fingerprint": fingerprint,
            "shape": [count, ORIENTATIONS, *self.shape],
            "dtype": "float32",
        }
        self._checksums: dict[int, int] = {}
        self._read: dict[Path, int] = {}
        self._journal: Path | None = None
        self._moments: np.memmap | None = None
        try:
            self._prepare()
        except OSError as error:
            raise InputError(
                f"latent_cache: {self.folder} cannot be written ({error.strerror}); give another folder with"
                f" {self.nbytes / 2**30:.1f} GiB free, or null to encode images at every step"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes that the whole cache takes."""
        return int(np.prod([self.count, ORIENTATIONS, *self.shape])) * 4

    @property
    def complete(self) -> float:
        """Share of the entries that are there, 0 to 1."""
        self._refresh()
        return len(self._checksums) / (self.count * ORIENTATIONS)

    def get(self, index: int, orientation: int) -> Tensor | None:
        """The moments of an image, float32, or None where they are not there yet or are damaged."""
        entry = self._entry(index, orientation)
        if entry not in self._checksums:
            self._refresh()
        if entry not in self._checksums:
            return None
        values = np.array(self._open()[index, orientation])
        if zlib.crc32(values.tobytes()) != self._checksums[entry]:
            del self._checksums[entry]
            return None
        return torch.from_numpy(values)

    def put(self, entries: Sequence[tuple[int, int]], moments: Tensor) -> None:
        """Keep the moments of images.

        Args:
            entries: (index, orientation) of each.
            moments: (len(entries), 2 C, h, w).

        Raises:
            InputError: if the disk is full.
        """
        values = moments.detach().to("cpu", torch.float32).numpy()
        records = np.empty(len(entries), _ENTRY)
        store = self._open()
        for row, (index, orientation) in enumerate(entries):
            store[index, orientation] = values[row]
            records[row] = self._entry(index, orientation), zlib.crc32(values[row].tobytes())
        if self._journal is None:
            self._journal = self.folder / f"{uuid.uuid4().hex}.journal"
        try:
            with self._journal.open("ab", buffering=0) as file:
                file.write(records.tobytes())
        except OSError as error:
            raise InputError(f"latent_cache: {self._journal} cannot be written ({error.strerror})") from error
        self._checksums.update(zip(records["entry"].tolist(), records["checksum"].tolist()))

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the file and, if they ever write, a journal of their own.
        return self.__dict__ | {"_moments": None, "_journal": None}

    def _entry(self, index: int, orientation: int) -> int:
        return index * ORIENTATIONS + orientation

    def _open(self) -> np.memmap:
        if self._moments is None:
            shape = (self.count, ORIENTATIONS, *self.shape)
            self._moments = np.memmap(self.folder / "moments.bin", np.float32, "r+", shape=shape)
        return self._moments

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        store, label = self.folder / "moments.bin", self.folder / "cache.json"
        if not self._is_ours(label) or not store.is_file() or store.stat().st_size != self.nbytes:
            for old in [label, *self.folder.glob("*.journal"), store]:
                old.unlink(missing_ok=True)
            with replacing(store) as temporary, temporary.open("wb") as file:
                _reserve(file.fileno(), self.nbytes)
            write_json(label, self._label)

    def _is_ours(self, label: Path) -> bool:
        try:
            return read_json(label) == self._label
        except InputError:
            return False

    def _refresh(self) -> None:
        """Take note of the entries that this and other processes have added since."""
        for journal in sorted(self.folder.glob("*.journal")):
            done = self._read.get(journal, 0)
            with journal.open("rb") as file:
                file.seek(done)
                content = file.read()
            whole = len(content) // _ENTRY.itemsize * _ENTRY.itemsize
            records = np.frombuffer(content[:whole], _ENTRY)
            self._checksums.update(zip(records["entry"].tolist(), records["checksum"].tolist()))
            self._read[journal] = done + whole


def _reserve(descriptor: int, size: int) -> None:
    """Make a file of ``size`` bytes whose room on the disk is certain: a full disk must not end a run half-way."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


class LatentDataset(Dataset):
    """Items of a data list as samples of a training step: their latent distribution where the cache has it.

    Asked with a :class:`~nodule_plugin.data.order.SampleKey` it draws one of the orientations with the sample's own
    random numbers; asked with a number it gives the image as it is.

    Args:
        data: items of a data list.
        transform: from an item to ``image``, (3, H, W) in [-1, 1].
        cache: of the same items; None leaves the encoding to each step.
        augment: False keeps every image as it is.

    A sample holds ``id``, ``prompt``, ``index``, ``orientation``, ``seed``, ``weight`` and either ``moments``
    (2 C, h, w) or, where those are not known yet, ``image`` (3, H, W); the other is None.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        cache: LatentCache | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(data, transform)
        self.cache = cache
        self.augment = augment

    def __getitem__(self, index: int | SampleKey) -> dict[str, Any]:
        if not isinstance(index, SampleKey):
            return self.fixed(SampleKey(index, sample_seed(index), 1.0))
        drawn = int(torch.randint(ORIENTATIONS, (), generator=seeded_generator(index.seed)))
        return self._sample(index, drawn if self.augment else 0)

    def fixed(self, key: SampleKey) -> dict[str, Any]:
        """A sample in its own orientation."""
        return self._sample(key, 0)

    def _sample(self, key: SampleKey, orientation: int) -> dict[str, Any]:
        moments = None if self.cache is None else self.cache.get(key.item, orientation)
        return {
            "id": self.data[key.item]["id"],
            "prompt": self.data[key.item]["prompt"],
            "index": key.item,
            "orientation": orientation,
            "seed": key.seed,
            "weight": key.weight,
            "moments": moments,
            "image": self.image(key.item, orientation) if moments is None else None,
        }

    def image(self, index: int, orientation: int = 0) -> Tensor:
        """The image (3, H, W) of an item, turned."""
        return orient(self._transform(index)["image"], orientation)


def collate_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Samples of :class:`LatentDataset` as a batch: a list for each field, since images and moments may be mixed."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def data_fingerprint(items: Sequence[Mapping[str, Any]], transform: Any) -> str:
    """What decides the pixels that go into an autoencoder, as SHA-256.

    Args:
        items: of a data list, ``image`` absolute; their files' sizes and times count, prompts and findings do not.
        transform: its classes and settings count.
    """
    stamps = {path: [(stat := Path(path).stat()).st_size, stat.st_mtime_ns] for path in {i["image"] for i in items}}
    fields = ("image", "slice_index", "axes", "centre", "spacing", "roi_mm")
    regions = [{name: item[name] for name in fields if name in item} for item in items]
    content = json.dumps([regions, stamps, _describe(transform)], sort_keys=True)
    return sha256(content.encode()).hexdigest()


def _describe(value: Any) -> Any:
    """A transform, or a setting of one, as JSON: the same for the same class and settings."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _describe(member) for key, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_describe(member) for member in value]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, np.random.RandomState):
        return name
    settings = {key: _describe(member) for key, member in getattr(value, "__dict__", {}).items() if key[0] != "_"}
    return [name, settings or str(getattr(value, "__qualname__", value))]
