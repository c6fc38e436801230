"""Handlers of the evaluation run: features of every image, the table's rows, the files."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from nodule_plugin.data.image_set import GENERATED, REAL, ImageSet, SetKey
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.measures import Encoder, Measure
from nodule_plugin.metrics.rows import measure_rows
from nodule_plugin.report.files import write_report
from nodule_plugin.report.results import build_results
from nodule_plugin.settings import as_flag

_logger = logging.getLogger(__name__)


class EncodeImages:
    """An iteration of the evaluation engine: the features of a batch, each image and encoder once.

    Args:
        measures: the table's columns, which say which encoders are needed.
    """

    def __init__(self, measures: Sequence[Measure]) -> None:
        wanted = [measure.encoder for measure in measures if measure.unavailable is None]
        self.encoders: dict[str, Encoder] = {encoder.id: encoder for encoder in wanted if encoder is not None}

    def __call__(self, engine: Engine, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``set`` and ``record`` of each item, ``image`` (uint8), and ``features``: encoder id -> (B, D)."""
        by_size: dict[torch.Size, list[int]] = defaultdict(list)
        for place, item in enumerate(batch):
            by_size[item["image"].shape].append(place)
        features: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(batch) for name in self.encoders}
        for places in by_size.values():
            images = torch.stack([batch[place]["image"] for place in places])
            for name, encoder in self.encoders.items():
                for place, row in zip(places, encoder(images)):
                    features[name][place] = row
        return {
            "set": [item["set"] for item in batch],
            "record": [item["record"] for item in batch],
            "image": [to_uint8(item["image"][None])[0] for item in batch],
            "features": {name: torch.stack(rows) for name, rows in features.items()},
        }


class ImageSetCollector:
    """Gather the engine's output into one :class:`ImageSet` a row, whole when the engine is done."""

    def __init__(self) -> None:
        self._sets: dict[SetKey, ImageSet] = {}
        self._features: dict[SetKey, dict[str, list[Tensor]]] = {}
        self._progress: tqdm[Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Gather every iteration; join when the epoch ends."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._join)

    @property
    def image_sets(self) -> list[ImageSet]:
        """The rows gathered, in the order of their first images."""
        return list(self._sets.values())

    def _start(self, engine: Engine) -> None:
        self._sets.clear()
        self._features.clear()
        self._progress = tqdm(total=engine.state.epoch_length, desc="features")

    def _gather(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for place, key in enumerate(output["set"]):
            images = self._sets.setdefault(key, ImageSet(key))
            images.records.append(output["record"][place])
            images.images.append(output["image"][place])
            rows = self._features.setdefault(key, defaultdict(list))
            for name, features in output["features"].items():
                rows[name].append(features[place])
        if self._progress is not None:
            self._progress.update()

    def _join(self, engine: Engine) -> None:
        for key, images in self._sets.items():
            images.features = {name: torch.stack(rows) for name, rows in self._features[key].items()}
        if self._progress is not None:
            self._progress.close()


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
        """Measure and write.

        Raises:
            InputError: if there are no real or no generated images, or the folder cannot be written.
        """
        sets = self.collector.image_sets
        for kind in (REAL, GENERATED):
            if not any(images.key.kind == kind for images in sets):
                raise InputError(f"evaluation: no {kind} images; give real_dir or datalist, and generated_dir")
        rows = measure_rows(sets, self.measures, self.seed)
        phantoms = any(record.phantom for images in sets for record in images.records)
        seen = sum(record.patient_id in self.training_patients for images in sets for record in images.records)
        self.results = build_results(rows, self.measures, self.settings, phantoms, seen)
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
