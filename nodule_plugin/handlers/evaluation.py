"""Handlers of the evaluation run: features of every image, the table's rows, the files; a score as a metric."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
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
    flat_warning,
)
from nodule_plugin.data.pixels import Images, to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.alignment import CLIPScorer
from nodule_plugin.metrics.feature_cache import Encoder, FeatureCache, image_key
from nodule_plugin.metrics.measures import Measure
from nodule_plugin.metrics.rows import measure_rows
from nodule_plugin.metrics.studies import run_studies
from nodule_plugin.report.files import write_report
from nodule_plugin.report.results import build_results
from nodule_plugin.settings import as_flag

KINDS = (REAL, GENERATED, CONTROL, TRAINING, DOSE, ATTACK)
_logger = logging.getLogger(__name__)


def join_processes() -> None:
    """Under ``torchrun``, make its processes one group; nothing where there is but one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        idist.initialize("nccl" if torch.cuda.is_available() else "gloo")


def own_share(count: int) -> range:
    """Which of ``count`` items this process takes: every n-th of n processes, so that shares differ by one at most."""
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
            places = [place for place, item in enumerate(batch) if item["set"].kind == kind]
            for encoder in self.by_kind[kind].values():
                self.cache(encoder).encode([images[place] for place in places], [keys[place] for place in places])
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
        """Note every iteration; join the processes' shares when the epoch ends."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._join)

    def _start(self, engine: Engine) -> None:
        self._keys.clear()
        self._progress = tqdm(total=engine.state.epoch_length, desc="features", disable=idist.get_rank() > 0)

    def _gather(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._keys.update(output)
        if self._progress is not None:
            self._progress.update()

    def _join(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.close()
        self.encode.flush()
        if idist.get_world_size() > 1:
            shares: list[Any] = [None] * idist.get_world_size()
            torch.distributed.all_gather_object(shares, self._keys)  # after the others' flush
            for share in shares:
                self._keys.update(share)
        by_set: dict[SetKey, list[int]] = {}
        for item in self.items:
            by_set.setdefault(item["set"], []).append(item["index"])
        self.image_sets = [self._set(key, places) for key, places in by_set.items()]

    def _set(self, key: SetKey, places: list[int]) -> ImageSet:
        features = {}
        for name, encoder in self.encode.by_kind[key.kind].items():
            cache = self.encode.cache(encoder)
            cache.refresh()
            features[name] = cache.rows([self._keys[place] for place in places])
        records: list[ImageRecord] = [self.items[place]["record"] for place in places]
        return ImageSet(key, records, LoadedImages(self.items, self._picture, places), dict(features))

    def _picture(self, item: Mapping[str, Any]) -> torch.Tensor:
        return to_uint8(self._load(item)["image"][None])[0]


class EvaluationReport:
    """Measure every row once all images are through, and write ``metrics.json``, CSV, Markdown, figure and page.

    Args:
        collector: attached to the same engine before this handler.
        output_dir: where the files go; made if absent.
        measures: the table's columns.
        settings: of the run, for the record.
        seed: of halves and shuffles.
        training_patients: JSON file that lists, under "training", patients whose images the bundle's small models were
            trained on; reference images of these are counted in the verdict. None: not known.
        show_real: show real images on the page. They must not leave the machine by chance, so the default is no.
    """

    def __init__(
        self,
        collector: ImageSetCollector,
        output_dir: str | Path,
        measures: Sequence[Measure],
        settings: Mapping[str, Any],
        seed: int = 0,
        show_real: bool | str = False,
        training_patients: str | Path | None = None,
    ) -> None:
        self.training_patients = read_patients(training_patients)
        self.collector, self.output_dir, self.measures = collector, Path(output_dir), list(measures)
        self.settings, self.seed, self.show_real = dict(settings), seed, as_flag("show_real", show_real)
        self.results: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Run when the engine is done, after :class:`ImageSetCollector`."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measure and write; of several processes, the first does it.

        Raises:
            InputError: if the folder cannot be written.
        """
        if idist.get_rank() > 0:
            return
        sets = self.collector.image_sets
        rows = measure_rows(sets, self.measures, self.seed)
        studies = run_studies(sets, self.measures)
        reference = [record for images in sets if images.key.kind == REAL for record in images.records]
        phantoms = any(record.phantom for record in reference)
        seen = sum(record.patient_id in self.training_patients for record in reference)
        trained_on = [images for images in sets if images.key.kind == TRAINING]
        shared = sum(real.of_patients(trained_on[0]) for real in sets if real.key.kind == REAL and trained_on)
        shown = [images for images in sets if images.key.kind in (REAL, GENERATED)]
        flat = [warning for images in shown if (warning := flat_warning(images))]
        self.results = build_results(rows, self.measures, self.settings, phantoms, seen, studies, shared, flat)
        written = write_report(self.results, sets, self.output_dir, self.show_real)
        _logger.info("wrote %s", ", ".join(path.name for path in written))


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


class PromptScore(Metric):
    """The mean score of images with their prompts over an engine's run, as an Ignite metric (a handler).

    ``PromptScore(BiomedCLIPScorer(folder)).attach(evaluator, "bioclip_score")``; of several processes, over all images.

    Args:
        scorer: of images and prompts.
        output_transform: the engine's output -> (images, prompts), images (B, 3, H, W) in [-1, 1].
    """

    def __init__(
        self,
        scorer: CLIPScorer,
        output_transform: Callable[[Any], tuple[Images, Sequence[str]]] = lambda output: output,
    ) -> None:
        self.scorer = scorer
        self._sum, self._count = 0.0, 0
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget all images."""
        self._sum, self._count = 0.0, 0

    def update(self, output: tuple[Images, Sequence[str]]) -> None:
        """Take a batch."""
        scores = self.scorer(*output)
        self._sum += float(scores.double().sum())
        self._count += len(scores)

    def compute(self) -> float:
        """The mean.

        Raises:
            InputError: if there was no image.
        """
        total, count = (idist.all_reduce(value) for value in (self._sum, float(self._count)))
        if not count:
            raise InputError(f"{type(self.scorer).__name__}: no image was given; at least 1 is needed")
        return float(total / count)
