"""An evaluation by one process or, under torchrun, by several: what the test of both compares."""

from __future__ import annotations

import sys
from pathlib import Path

import ignite.distributed as idist
import torch
from monai.engines import Evaluator

from nodule_plugin.data.evaluation_images import LoadSetImaged, generated_items, joined_items, real_items
from nodule_plugin.handlers.evaluation import (
    EncodeImages,
    ImageSetCollector,
    join_processes,
    own_indices,
)
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.distribution import FrechetDistanceMetric, KernelDistanceMetric
from nodule_plugin.metrics.features import OpenCLIPImageFeatures
from nodule_plugin.report.evaluation import EvaluationReport


def evaluate(root: Path, clip: Path, output: Path) -> None:
    """Evaluate ``root/generated`` against ``root/real``; the metric classes' values go to ``values.txt``."""
    join_processes()
    items = joined_items(real_items(real_dir=root / "real"), generated_items(root / "generated"))
    features = OpenCLIPImageFeatures(clip)
    measures = Distances(repeats=5)(features, "fd", "kd")
    load, encode = LoadSetImaged(), EncodeImages(measures, output / "features")
    collector = ImageSetCollector(items, load, encode)
    report = EvaluationReport(collector, output, measures, settings={})
    own = own_indices(len(items))
    images = [load(item) for item in items]
    Evaluator(
        device=torch.device("cpu"),
        val_data_loader=torch.utils.data.DataLoader(images, batch_size=3, sampler=own, collate_fn=list),
        iteration_update=encode,
        val_handlers=[collector, report],
        decollate=False,
    ).run()
    frechet, kernel = FrechetDistanceMetric(features), KernelDistanceMetric(features)
    for index in own:
        image, real = images[index]["image"][None], images[index]["set"].kind == "real"
        frechet.update(image, real)
        # As many of either kind: subsets of unequal sets depend on the order, which processes change.
        if index < len(items) - 1:
            kernel.update(image, real)
    values = [float(frechet.compute()), kernel.compute().mean]
    if idist.get_rank() == 0:
        (output / "values.txt").write_text(" ".join(map(repr, values)))


if __name__ == "__main__":
    evaluate(*(Path(argument) for argument in sys.argv[1:]))
    idist.finalize()
