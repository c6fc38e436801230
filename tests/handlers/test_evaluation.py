from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import distributed_evaluation
import pytest
import torch
from distributed_evaluation import evaluate
from monai.engines import Evaluator
from PIL import Image
from warm import run_ranks

from nodule_plugin.data.image_set import DOSE, GENERATED, REAL, TRAINING, ImageRecord, LoadedImages, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.evaluation import EncodeImages, ImageSetCollector, chosen_on_sentences
from nodule_plugin.metrics.attributes import FindingMeasure, FindingReader
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.measures import Measure
from nodule_plugin.report.evaluation import EvaluationReport


class MeanFeatures:
    """Mean and deviation of an image; counts how many images it was given."""

    id = name = fingerprint = "mean"
    unavailable: str | None = None

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


def _measures(features: MeanFeatures) -> list[Measure]:
    return [column for name in ("a", "b") for column in Distances(repeats=3)(features, "fd", suffix=name)]


def _run(items: list[dict[str, Any]], measures: list[Measure], output: Path) -> EvaluationReport:
    items = [item | {"index": index} for index, item in enumerate(items)]
    encode = EncodeImages(measures, output / "features")
    collector = ImageSetCollector(items, lambda item: item, encode)
    report = EvaluationReport(collector, output, measures, settings={"seed": 0})
    Evaluator(
        device=torch.device("cpu"),
        val_data_loader=torch.utils.data.DataLoader(items, batch_size=4, collate_fn=list),
        iteration_update=encode,
        val_handlers=[collector, report],
        decollate=False,
    ).run()
    return report


def test_every_image_is_encoded_once_whatever_its_size(tmp_path: Path) -> None:
    items = [*_items(REAL, 7, 8), *_items(GENERATED, 6, 16)]
    features = MeanFeatures()
    report = _run(items, _measures(features), tmp_path)
    assert features.seen == 13
    gathered = {images.key.kind: images for images in report.collector.image_sets}
    assert [record.id for record in gathered[GENERATED].records] == [f"generated{i}" for i in range(6)]
    expected = MeanFeatures()(torch.stack([item["image"] for item in items[7:]]))
    assert torch.allclose(torch.from_numpy(gathered[GENERATED].features_of("mean").read()).float(), expected, atol=5e-3)
    assert isinstance(gathered[GENERATED].images, LoadedImages)
    assert report.results["rows"][2]["values"]["fd_a"] == report.results["rows"][2]["values"]["fd_b"]
    assert (tmp_path / "report.html").is_file()


def test_images_that_are_real_ones_are_warned_of(tmp_path: Path) -> None:
    real = _items(REAL, 7, 8)
    generated = _items(GENERATED, 6, 8)
    copied = [item | {"image": original["image"]} for item, original in zip(generated[:2], real)]
    report = _run([*real, *copied, *generated[2:]], _measures(MeanFeatures()), tmp_path / "copied")
    assert "2 of the 6 images of generated equal a real image to the last bit" in " ".join(report.results["warnings"])
    report = _run([*real, *generated], _measures(MeanFeatures()), tmp_path / "own")
    assert "to the last bit" not in " ".join(report.results["warnings"])


def test_a_run_says_what_it_computes_and_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run([*_items(REAL, 7, 8), *_items(GENERATED, 6, 8)], _measures(MeanFeatures()), tmp_path)
    out, err = capsys.readouterr()
    assert re.search(r"encoding: +\d+%.*/13 .*image.*mean", err)
    assert re.search(r"measuring FD \(mean\): generated at 3: +\d+%.*/8 ", err)  # four rows, two measures
    assert "study: memorization" in err
    assert out.splitlines()[-1] == f"Report: {(tmp_path / 'report.html').resolve()}"


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    items = [*_items(REAL, 7, 8), *_items(GENERATED, 6, 8)]
    first = _run(items, _measures(MeanFeatures()), tmp_path)
    again = MeanFeatures()
    second = _run(items, _measures(again), tmp_path)
    assert again.seen == 0
    assert second.results["rows"] == first.results["rows"]


def test_kinds_of_images_are_encoded_for_those_who_ask(tmp_path: Path) -> None:
    for_distances, for_findings = MeanFeatures(), MeanFeatures()
    for_findings.id = for_findings.fingerprint = "findings"
    measures = [
        *Distances(repeats=3)(for_distances, "fd"),
        FindingMeasure("f", "F", "margin", FindingReader([for_findings])),
    ]
    items = [*_items(REAL, 3, 8), *_items(GENERATED, 4, 8), *_items(TRAINING, 5, 8), *_items(DOSE, 6, 8)]
    _run(items, measures, tmp_path)
    assert (for_distances.seen, for_findings.seen) == (7, 18)


def test_one_image_a_side_is_reported_not_raised(tmp_path: Path) -> None:
    report = _run([*_items(REAL, 1, 8), *_items(GENERATED, 1, 8)], _measures(MeanFeatures()), tmp_path)
    assert report.results["rows"][-1]["values"]["fd_a"]["reason"] == "1 real image, 2 needed"


@pytest.mark.parametrize("kind", [REAL, GENERATED])
def test_one_side_missing_is_an_error_before_anything_is_encoded(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluation: no"):
        _run(_items(kind, 3, 8), _measures(MeanFeatures()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_processes_with_uneven_shares_equal_one(clip_folder: Path, tmp_path: Path) -> None:
    for name, count in (("real", 9), ("generated", 10)):
        (tmp_path / name).mkdir()
        grey = torch.randint(0, 256, (count, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
        for place, picture in enumerate(grey):
            Image.fromarray(picture.numpy()).save(tmp_path / name / f"{place}.png")
    outputs = {processes: tmp_path / f"of-{processes}" for processes in (1, 2)}
    evaluate(tmp_path, clip_folder, outputs[1])
    command = [sys.executable, distributed_evaluation.__file__, str(tmp_path), str(clip_folder), str(outputs[2])]
    for ran in run_ranks(2, command, tmp_path, timeout=240):
        assert ran.returncode == 0, ran.stderr[-3000:]
    results = {}
    for processes, output in outputs.items():
        rows = json.loads((output / "metrics.json").read_text())["rows"]
        numbers = [row["values"][key]["value"] for row in rows for key in ("fd", "kd")]
        results[processes] = [number for number in numbers if number is not None]
        results[processes] += [float(text) for text in (output / "values.txt").read_text().split()]
    assert len(results[1]) == 6
    assert results[2] == pytest.approx(results[1], rel=1e-4)


def test_models_judged_on_who_chose_them_are_told(tmp_path: Path) -> None:
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"validation": [{"patient_id": "a"}, {"patient_id": "b"}]}))
    generated = [{"folder": "plain"}, {"model": {}}, {"model": {"chosen_on": "validation"}}]
    reference = [ImageRecord(str(index), patient_id=name) for index, name in enumerate(["a", "b", "b", "c", None])]
    (sentence,) = chosen_on_sentences(reference, generated, datalist)
    assert sentence.startswith("3 of the real images are of patients of the validation split")
    assert chosen_on_sentences(reference[3:], generated, datalist) == []
    assert chosen_on_sentences(reference, generated[:2], datalist) == []
    assert chosen_on_sentences(reference, generated, None) == []
