"""Handlers of the evaluation run: features of every image, the sets they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from nodule_plugin.data.image_set import (
    ATTACK,
    CONTROL,
    DOSE,
    GENERATED,
    REAL,
    TRAINING,
    ImageRecord,
    ImageSet,
    LoadedImages,
    SetKey,
)
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.metrics.feature_cache import Encoder, FeatureCache, image_key
from nodule_plugin.metrics.measures import Measure

KINDS = (REAL, GENERATED, CONTROL, TRAINING, DOSE, ATTACK)
KEPT_BYTES = 2**28
"""Of decoded images: every study looks at the same ones again."""


def join_processes() -> None:
    """Under ``torchrun``, make its processes one group; nothing where there is but one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        idist.initialize("nccl" if torch.cuda.is_available() else "gloo")


def own_indices(count: int) -> range:
    """Which of ``count`` items this process takes: every n-th of n, so that none has two more than another."""
    return range(idist.get_rank(), count, idist.get_world_size())


class EncodeImages:
    """An iteration of the evaluation engine: the features of a batch into the cache, each image and encoder once.

    Args:
        measures: the table's columns, which say which encoders are needed for which kind of image.
        cache_dir: of features, see :mod:`nodule_plugin.metrics.feature_cache`; several processes need a shared one.
    """

    def __init__(self, measures: Sequence[Measure], cache_dir: str | Path) -> None:
        wanted = [measure for measure in measures if measure.unavailable is None]
        self.by_kind: dict[str, dict[str, Encoder]] = {
            kind: {encoder.id: encoder for measure in wanted for encoder in measure.encoders(kind)} for kind in KINDS
        }
        self.cache_dir = cache_dir
        self._caches: dict[str, FeatureCache] = {}
        self.announce: Callable[[str], Any] = lambda name: None
        """Called with the name of the network that is about to look at images."""

    def cache(self, encoder: Encoder) -> FeatureCache:
        """The cache of one encoder's features; loads its weights to know them by."""
        if encoder.id not in self._caches:
            self._caches[encoder.id] = FeatureCache(self.cache_dir, encoder)
        return self._caches[encoder.id]

    def __call__(self, engine: Engine, batch: Sequence[Mapping[str, Any]]) -> list[tuple[int, bytes]]:
        """``index`` of each item and the key of its image."""
        images = [to_uint8(item["image"][None])[0] for item in batch]
        keys = [image_key(image) for image in images]
        for kind in {item["set"].kind for item in batch}:
            own = [index for index, item in enumerate(batch) if item["set"].kind == kind]
            for encoder in self.by_kind[kind].values():
                self.announce(encoder.name)
                self.cache(encoder).encode([images[index] for index in own], [keys[index] for index in own])
        return [(item["index"], key) for item, key in zip(batch, keys)]

    def flush(self) -> None:
        """Write what is still in memory."""
        for cache in self._caches.values():
            cache.flush()


class ImageSetCollector:
    """After the engine's pass: one :class:`ImageSet` a row, images and features left on disk.

    Args:
        items: all items of the evaluation, numbered; see :func:`nodule_plugin.data.evaluation_images.joined_items`.
        load: the transform that loads an item.
        encode: the engine's iteration.

    Raises:
        InputError: if there are no real or no generated images.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        load: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        encode: EncodeImages,
    ) -> None:
        for kind in (REAL, GENERATED):
            if not any(item["set"].kind == kind for item in items):
                raise InputError(f"evaluation: no {kind} images; give real_dir or datalist, and generated_dir")
        self.items, self.encode = items, encode
        self._load = load
        self._keys: dict[int, bytes] = {}
        self._progress: tqdm[Any] | None = None
        self.image_sets: list[ImageSet] = []

    def attach(self, engine: Engine) -> None:
        """Note every iteration; join what the processes noted when the epoch ends."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._join)

    def _start(self, engine: Engine) -> None:
        self._keys.clear()
        count = len(own_indices(len(self.items)))
        self._progress = tqdm(total=count, desc="encoding", unit="image", disable=idist.get_rank() > 0)
        self.encode.announce = self._progress.set_postfix_str

    def _gather(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._keys.update(output)
        if self._progress is not None:
            self._progress.update(len(output))

    def _join(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.close()
        self.encode.flush()
        if idist.get_world_size() > 1:
            noted: list[Any] = [None] * idist.get_world_size()
            torch.distributed.all_gather_object(noted, self._keys)  # after the others' flush
            for keys in noted:
                self._keys.update(keys)
        by_set: dict[SetKey, list[int]] = {}
        for item in self.items:
            by_set.setdefault(item["set"], []).append(item["index"])
        picture = self._pictures()
        self.image_sets = [self._set(key, indices, picture) for key, indices in by_set.items()]

    def identical_sentences(self) -> list[str]:
        """A sentence for each generated set in which images are real ones, to the last bit."""
        keys: dict[SetKey, list[bytes]] = {}
        for item in self.items:
            keys.setdefault(item["set"], []).append(self._keys[item["index"]])
        real = {key for images, found in keys.items() if images.kind == REAL for key in found}
        equal = {
            images: sum(key in real for key in found) for images, found in keys.items() if images.kind == GENERATED
        }
        return [
            f"{count} of the {len(keys[images])} images of {images.model} equal a real image to the last bit: "
            "distances to the real images flatter them. Is one folder part of the other?"
            for images, count in equal.items()
            if count
        ]

    def _pictures(self) -> Callable[[Mapping[str, Any]], torch.Tensor]:
        """From an item to its image, (3, H, W) uint8; the latest stay in memory, as many as :data:`KEPT_BYTES` hold."""

        def decode(index: int) -> torch.Tensor:
            return to_uint8(self._load(self.items[index])["image"][None])[0]

        recent = lru_cache(KEPT_BYTES // decode(0).numel())(decode)
        return lambda item: recent(item["index"])

    def _set(self, key: SetKey, indices: list[int], picture: Callable[[Mapping[str, Any]], torch.Tensor]) -> ImageSet:
        features = {}
        for name, encoder in self.encode.by_kind[key.kind].items():
            cache = self.encode.cache(encoder)
            cache.refresh()
            features[name] = cache.rows([self._keys[index] for index in indices])
        records: list[ImageRecord] = [self.items[index]["record"] for index in indices]
        return ImageSet(key, records, LoadedImages(self.items, picture, indices), dict(features))


def read_patients(file: str | Path | None) -> frozenset[str]:
    """The patients under "training" of a JSON file; none where there is no file to read.

    Raises:
        InputError: if the file is not of that form.
    """
    if file is None:
        return frozenset()
    try:
        return frozenset(json.loads(Path(file).read_text(encoding="utf-8"))["training"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'training_patients: {file} is no JSON with a list "training" ({error}); give another file'
        ) from error


def chosen_on_sentences(
    reference: Sequence[ImageRecord], generated: Sequence[Mapping[str, Any]], datalist: str | Path | None
) -> list[str]:
    """What must be said where models are judged on patients on whom they were chosen.

    Args:
        reference: the real images.
        generated: what the manifests say of the generated sets, see
            :func:`nodule_plugin.data.evaluation_images.describe_generated`.
        datalist: that the models were trained with; None where that is not known.

    Returns:
        A sentence for each split that chose a model or its guidance scale and shares patients with the reference.

    Raises:
        InputError: if the data list cannot be read.
    """
    splits = {entry.get("model", {}).get("chosen_on") for entry in generated} - {None}
    content = read_json(Path(datalist)) if datalist is not None and splits else {}
    sentences = []
    for split in sorted(splits):
        patients = {item["patient_id"] for item in content.get(split, [])}
        if shared := sum(record.patient_id in patients for record in reference):
            sentences.append(
                f"{shared} of the real images are of patients of the {split} split, on which the weights or their "
                "guidance scale were chosen: distances to them flatter the model. Choose another split."
            )
    return sentences
