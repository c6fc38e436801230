from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from nodule_plugin.data.image_set import ImageRecord
from nodule_plugin.downstream.classifier import train_classifier
from nodule_plugin.downstream.study import MEAN, _area, _patient_draws, run_downstream
from nodule_plugin.downstream.tasks import TASKS, Pictures
from nodule_plugin.errors import InputError
from nodule_plugin.report.downstream import markdown, write_downstream

SUBSOLID, CALCIFIED = TASKS[:2]
SETTINGS: dict[str, Any] = {"tasks": (SUBSOLID, CALCIFIED), "seeds": [0], "steps": 60, "resamples": 40}


def _items(name: str, number: int, seed: int, honest: bool = True, **ratings: int) -> list[dict[str, Any]]:
    """Images whose brightness shows their texture and whose top half shows calcification, or show nothing."""
    draw = torch.Generator().manual_seed(seed)
    items = []
    for place in range(number):
        texture, calcification = (1, 5)[place % 2], (3, 6)[place // 2 % 2]
        image = torch.randn(1, 16, 16, generator=draw) * 0.2
        if honest:
            image += 0.4 * (texture == 5)
            image[:, 4:8, 4:8] += 0.8 * (calcification == 3)
        given = {"texture": texture, "calcification": calcification, **ratings}
        record = ImageRecord(f"{name}-{place}", patient_id=f"{name}-{place // 2}", ratings=given)
        items.append({"image": image.expand(3, -1, -1), "record": record})
    return items


def _load(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return item


def _run(generated: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return run_downstream(
        _items("training", 48, 0), generated, _items("held out", 60, 1), _load, **{**SETTINGS, **settings}
    )


def _values(results: dict[str, Any], finding: str) -> dict[str, Any]:
    return {arm["name"]: arm["auroc"][finding] for arm in results["arms"]}


def test_images_that_show_their_findings_teach_them() -> None:
    results = _run(_items("generated", 80, 2))
    assert [(arm["name"], arm["images"]) for arm in results["arms"]] == [
        ("real", 48),
        ("synthetic, as many", 48),
        ("synthetic, all", 80),
        ("real and synthetic", 128),
    ]
    assert all(value["value"] > 0.9 for value in _values(results, MEAN).values())
    for finding in results["findings"]:
        assert (finding["with"], finding["without"]) == (30, 30)
    assert abs(results["arms"][2]["difference"][MEAN]["value"]) < 0.1


def test_images_that_do_not_show_their_findings_teach_nothing() -> None:
    results = _run(_items("generated", 48, 2, honest=False))
    synthetic = next(arm for arm in results["arms"] if arm["name"] == "synthetic, all")
    assert 0.2 < synthetic["auroc"][MEAN]["value"] < 0.8
    assert synthetic["difference"][MEAN]["ci95"][1] < 0
    assert "synthetic, as many" not in _values(results, MEAN)  # it would be the same


def test_what_one_choice_of_images_cannot_teach_is_not_in_the_mean() -> None:
    results = _run(_items("generated", 48, 2, calcification=6), steps=2)
    assert _values(results, "calcified")["synthetic, all"] is None
    assert _values(results, "calcified")["real"] is not None
    assert _values(results, MEAN) == _values(results, "subsolid")
    assert "not measured" in markdown(results)


def test_too_few_test_images_give_no_number() -> None:
    held_out = _items("held out", 8, 1)
    results = run_downstream(_items("training", 20, 0), _items("g", 20, 2), held_out, _load, **{**SETTINGS, "steps": 1})
    assert set(_values(results, "subsolid").values()) == {None}
    assert set(_values(results, MEAN).values()) == {None}


def test_the_same_seeds_give_the_same_numbers() -> None:
    first, second = (_run(_items("generated", 20, 2), steps=5) for _ in range(2))
    assert first == second
    assert first != _run(_items("generated", 20, 2), steps=5, seeds=[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generated_items": []}, "generated images: there is none"),
        ({"held_out_items": _items("training", 8, 0)}, "held-out images: patient training-0 is among the training"),
        (
            {"generated_items": [{"record": ImageRecord("g0", source_id="held out-3")}]},
            "generated image g0 was asked for with the findings of the held-out nodule held out-3",
        ),
        (
            {"generated_items": [{"image": torch.zeros(3, 16, 16), "record": ImageRecord("g0")}]},
            "generated images: none has findings",
        ),
    ],
)
def test_what_is_no_test_is_refused(change: dict[str, Any], message: str) -> None:
    items = {name: _items(name, 8, 0) for name in ("training", "generated", "held out")}
    sources = {f"{name.replace(' ', '_')}_items": found for name, found in items.items()}
    with pytest.raises(InputError, match=message):
        run_downstream(**{**sources, **change}, load=_load, **SETTINGS)


@pytest.mark.parametrize(
    ("name", "ratings", "answer"),
    [
        ("subsolid", {"texture": 3}, 1),
        ("subsolid", {"texture": 4}, 0),
        ("subsolid", {}, None),
        ("calcified", {"calcification": 6}, 0),
        ("calcified", {"calcification": 1}, 1),
        ("suspicious of malignancy", {"malignancy": 3}, None),
        ("suspicious of malignancy", {"malignancy": 2}, 0),
        ("suspicious of malignancy", {"malignancy": 4}, 1),
    ],
)
def test_answers(name: str, ratings: dict[str, int], answer: int | None) -> None:
    (task,) = (task for task in TASKS if task.name == name)
    found = task.answer(ImageRecord("a", ratings=ratings))
    assert np.isnan(found) if answer is None else found == answer


def test_area_is_scikit_learns_of_the_images_with_an_answer() -> None:
    rng = np.random.default_rng(0)
    logits, answers = rng.normal(size=50).round(1), rng.integers(0, 2, 50).astype(float)
    answers[::7] = np.nan
    draw = rng.integers(0, 50, 50)
    known = draw[~np.isnan(answers[draw])]
    found = _area(torch.from_numpy(logits), torch.from_numpy(answers), draw)
    assert found == pytest.approx(roc_auc_score(answers[known], logits[known]), abs=1e-6)
    assert np.isnan(_area(torch.zeros(3), torch.tensor([1.0, 1.0, float("nan")]), np.arange(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_logits_are_ties_wherever_they_stand(dtype: torch.dtype) -> None:
    # 17 numbers fill vector registers and leave a rest, in which torch.sigmoid may round otherwise.
    answers = torch.tensor([float(index % 2) for index in range(17)])
    assert _area(torch.full((17,), -1.7, dtype=dtype), answers, np.arange(17)) == 0.5
    assert _area(torch.full((17,), -1.7, dtype=dtype), answers, np.arange(17)[::-1].copy()) == 0.5


def test_patients_are_drawn_whole() -> None:
    patients = ["a", "b", "a", "c", "a"]
    draws = _patient_draws(patients, 50)
    assert len(draws) == 50
    for draw in draws:
        counts = np.bincount(draw, minlength=5)
        assert counts[0] == counts[2] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
    assert len({tuple(draw) for draw in draws}) > 5


def test_a_classifier_of_nothing() -> None:
    with pytest.raises(InputError, match="no image to learn from"):
        train_classifier(Pictures(torch.zeros(0, 1, 16, 16), torch.zeros(0, 2), []))


def test_files(tmp_path: Path) -> None:
    results = _run(_items("generated", 60, 2), steps=2, seen_patients={"held out-0"})
    written = write_downstream(results, tmp_path / "out")
    assert [path.name for path in written] == ["downstream.md", "downstream.png", "downstream.json"]
    text = written[0].read_text()
    assert "60 real images of 30 patients" in text
    assert "**2 of the test images are of patients whom the bundle's small models learnt from**" in text
    assert "| subsolid | 30 / 30 |" in text
    assert written[1].read_bytes().startswith(b"\x89PNG")
    unseen = results | {"settings": results["settings"] | {"seen": 0}}
    assert "small models" not in markdown(unseen)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_downstream(results, tmp_path / "file")


def test_generated_images_have_no_patient() -> None:
    generated = [item | {"record": replace(item["record"], patient_id=None)} for item in _items("generated", 8, 2)]
    assert _run(generated, steps=1)["settings"]["test_images"] == 60
