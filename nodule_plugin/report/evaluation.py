"""The end of an evaluation, as a handler: every row is measured, the studies are run, the report is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from nodule_plugin.data.image_set import GENERATED, REAL, TRAINING, flat_warning
from nodule_plugin.handlers.evaluation import ImageSetCollector, chosen_on_sentences, read_patients
from nodule_plugin.metrics.measures import Measure
from nodule_plugin.metrics.privacy import audit_of
from nodule_plugin.metrics.results_table import measure_rows
from nodule_plugin.metrics.studies import run_studies
from nodule_plugin.report.files import write_report
from nodule_plugin.report.results import build_results
from nodule_plugin.report.terminal import terminal_text
from nodule_plugin.settings import as_flag

_logger = logging.getLogger(__name__)


class EvaluationReport:
    """Measure every row once all images are through, write the files, print a table and where the page is.

    Args:
        collector: attached to the same engine before this handler.
        output_dir: where the files go; made if absent.
        measures: the table's columns.
        settings: of the run, for the record.
        seed: of halves and shuffles.
        training_patients: JSON file that lists, under "training", patients whose images the bundle's small models were
            trained on; reference images of these are counted in the verdict. None: not known.
        show_real: show real images on the page. They must not leave the machine by chance, so the default is no.
        converted: what was changed about pictures to compare them, see
            :func:`nodule_plugin.data.evaluation_images.conversions`.
        privacy: ``privacy.json`` of an audit of the model; None: there was none.

    Raises:
        InputError: if the audit cannot be read or is of another model.
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
        converted: Sequence[str] = (),
        privacy: str | Path | None = None,
    ) -> None:
        self.privacy = None if privacy is None else audit_of(privacy, settings.get("generated", []))
        self.training_patients = read_patients(training_patients)
        self.collector, self.output_dir, self.measures = collector, Path(output_dir), list(measures)
        self.settings, self.seed, self.show_real = dict(settings), seed, as_flag("show_real", show_real)
        self.converted = list(converted)
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
        chosen = chosen_on_sentences(
            reference, self.settings.get("generated", []), self.settings.get("training_datalist")
        )
        warnings = [*self.collector.identical_sentences(), *chosen, *flat, *self.converted]
        self.results = build_results(
            rows, self.measures, self.settings, phantoms, seen, studies, shared, warnings, privacy=self.privacy
        )
        _logger.info("drawing the report")
        written = write_report(self.results, sets, self.output_dir, self.show_real)
        _logger.info("wrote %s", ", ".join(path.name for path in written))
        print(terminal_text(self.results, (self.output_dir / "report.html").resolve()))
