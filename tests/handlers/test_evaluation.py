from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import Evaluator

from nodule_plugin.data.image_set import GENERATED, REAL, ImageRecord, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.evaluation import EncodeImages, EvaluationReport, ImageSetCollector
from nodule_plugin.metrics.measures import FrechetMeasure


class MeanFeatures:
    """Mean and deviation of an image; counts how many images it was given."""

    id = name = "mean"
    unavailable: str | None = None
    dim = 2

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


def _items(kind: str, count: int, size: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(count)
    key = SetKey(kind, kind, 3.0 if kind == GENERATED else None)
    pictures = torch.rand(count, 1, size, size, generator=generator) * 2 - 1
    return [
        {"image": picture.expand(3, -1, -1), "set": key, "record": ImageRecord(f"{kind}{i}", f"p{i % 3}")}
        for i, picture in enumerate(pictures)
    ]


def _run(items: list[dict[str, Any]], features: MeanFeatures, output: Path) -> EvaluationReport:
    measures = [
        FrechetMeasure("a", "A", features, standard=False, repeats=3),
        FrechetMeasure("b", "B", features, standard=False, repeats=3),
    ]
    collector = ImageSetCollector()
    report = EvaluationReport(collector, output, measures, settings={"seed": 0})
    Evaluator(
        device=torch.device("cpu"),
        val_data_loader=torch.utils.data.DataLoader(items, batch_size=4, collate_fn=list),
        iteration_update=EncodeImages(measures),
        val_handlers=[collector, report],
        decollate=False,
    ).run()
    return report


def test_every_image_is_encoded_once_whatever_its_size(tmp_path: Path) -> None:
    items = [*_items(REAL, 7, 8), *_items(GENERATED, 6, 16)]
    features = MeanFeatures()
    report = _run(items, features, tmp_path)
    assert features.seen == 13
    gathered = {images.key.kind: images for images in report.collector.image_sets}
    assert [record.id for record in gathered[GENERATED].records] == [f"generated{i}" for i in range(6)]
    expected = MeanFeatures()(torch.stack([item["image"] for item in items[7:]]))
    assert torch.allclose(gathered[GENERATED].features["mean"], expected)
    assert report.results["rows"][2]["values"]["a"] == report.results["rows"][2]["values"]["b"]
    assert (tmp_path / "report.html").is_file()


def test_one_image_a_side_is_reported_not_raised(tmp_path: Path) -> None:
    report = _run([*_items(REAL, 1, 8), *_items(GENERATED, 1, 8)], MeanFeatures(), tmp_path)
    assert report.results["rows"][-1]["values"]["a"]["reason"] == "1 real image, 2 needed"


@pytest.mark.parametrize("kind", [REAL, GENERATED])
def test_one_side_missing_is_an_error_and_leaves_no_file(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluation: no"):
        _run(_items(kind, 3, 8), MeanFeatures(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
