from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nodule_plugin.data.image_set import ATTACK, DOSE, GENERATED, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.data.requests import dose_response
from nodule_plugin.metrics.attributes import FindingMeasure, FindingReader
from nodule_plugin.metrics.copies import CopyMeasure
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.grey_values import GreyValueFeatures
from nodule_plugin.metrics.measures import BEYOND, FINDINGS, columns
from nodule_plugin.metrics.planted_copies import planted_copies
from nodule_plugin.metrics.results_table import measure_rows
from nodule_plugin.metrics.studies import NO_STUDIES, run_studies
from nodule_plugin.report.page import render_page
from nodule_plugin.report.results import build_results
from nodule_plugin.report.studies import agreement_table, copies_table, detector_sentences, dose_table

GREY = GreyValueFeatures()
START = {"sphericity": 4, "margin": 4, "texture": 5, "spiculation": 1, "calcification": 6}


class Given:
    """An encoder whose features the sets bring along."""

    id = name = fingerprint = "given"
    unavailable: str | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("features are given")


def _smooth(count: int, seed: int) -> list[torch.Tensor]:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    return list((images * 255).to(torch.uint8))


def _set(key: SetKey, records: list[ImageRecord], images: list[torch.Tensor], seed: int) -> ImageSet:
    """Images whose features show their margin."""
    draw = np.random.default_rng(seed)
    rows = [[record.ratings["margin"] + draw.normal(0, 0.3), draw.normal()] for record in records]
    features = {"given": torch.tensor(rows, dtype=torch.float64)}
    if key.kind in (REAL, GENERATED):
        features[GREY.id] = GREY(torch.stack(images) / 127.5 - 1)
    return ImageSet(key, records, images, features)


def _records(name: str, count: int) -> list[ImageRecord]:
    codes = np.random.default_rng(count).integers(1, 6, size=count)
    return [ImageRecord(f"{name}{i}", f"p{i}", ratings={"margin": int(code)}) for i, code in enumerate(codes)]


@pytest.fixture(scope="module")
def sets() -> list[ImageSet]:
    training = _smooth(24, 0)
    dose = [
        ImageRecord(f"d{seed}-{place}", "p", ratings=findings, seed=seed)
        for seed in range(3)
        for place, findings in enumerate(dose_response(START, ratings=["margin"]))
    ]
    attack = [ImageRecord(f"a{i}", f"p{i}", f"t{i}", ratings={"margin": 1}) for i in range(3)]
    return [
        _set(SetKey(REAL, "real images"), _records("r", 20), _smooth(20, 1), 1),
        _set(SetKey(TRAINING, "training images"), _records("t", 24), training, 2),
        _set(SetKey(GENERATED, "tiny", 5.0), _records("g", 12), [*_smooth(10, 2), *planted_copies(training, 2, 1)], 3),
        _set(SetKey(GENERATED, "tiny", 9.0), _records("h", 10), _smooth(10, 3), 4),
        _set(SetKey(DOSE, "tiny", 5.0), dose, _smooth(len(dose), 4), 5),
        _set(SetKey(ATTACK, "tiny", 5.0), attack, training[:3], 6),
    ]


@pytest.fixture(scope="module")
def results(sets: list[ImageSet]) -> dict[str, Any]:
    finding = FindingMeasure("finding_margin", "Margin", "margin", FindingReader([Given()]), repeats=20)
    copies = CopyMeasure("copies", "Copies", planted=6)
    measures = columns({BEYOND: [copies, Distances()(GREY, "hu_histogram")], FINDINGS: [finding]})
    return build_results(measure_rows(sets, measures), measures, {}, studies=run_studies(sets, measures))


def test_studies_are_plain_json(results: dict[str, Any]) -> None:
    studies = json.loads(json.dumps(results))["studies"]
    assert set(studies) == {"memorization", "dose_response", "readers", "grey_values", "noise_power"}
    assert studies["readers"]["margin"]["exact"] == pytest.approx(0.44, abs=0.005)
    (curve,) = studies["dose_response"]
    assert (curve["rating"], curve["chains"], curve["monotone"]) == ("margin", 3, True)


def test_copies_lead_the_closest_pairs(results: dict[str, Any]) -> None:
    memorization = results["studies"]["memorization"]
    with_copies, without = (row["copies"]["hits"] for row in memorization["sets"])
    assert with_copies >= 2 > without
    assert {pair["image"] for pair in memorization["closest_pairs"][:2]} == {"g10", "g11"}
    (attack,) = memorization["attacks"]
    assert attack["own_nearest"]["share"] == attack["copies"]["share"] == 1.0


def test_tables_say_what_was_found(results: dict[str, Any]) -> None:
    headings, rows = agreement_table(results) or ([], [])
    assert headings == ["Finding", "Readers of LIDC-IDRI", "real images", "tiny at 5", "tiny at 9"]
    assert rows[0][:2] == ["Margin", "0.44 /\n0.86 / 0.46"]
    assert re.match(r"0\.\d\d \[0\.\d\d, \d\.\d\d\] /\s\d\.\d\d / \d\.\d\d", rows[0][3])
    dose = dose_table(results)
    assert dose is not None
    assert dose[1][0][0] == "Margin"
    copies = copies_table(results)
    assert copies is not None
    assert re.match(r"[23] of 12 \(\d\d\.\d\s% \[", copies[1][0][2])
    assert any("Attack on tiny through 3 prompts" in sentence for sentence in detector_sentences(results))


def test_findings_and_copies_have_lights(results: dict[str, Any]) -> None:
    assert results["best"]["measure"] == "hu_histogram"  # the only distance here
    shown = {light["question"]: [one["key"] for one in light["evidence"]] for light in results["lights"]}
    assert (shown["findings"], shown["copies"], shown["noise"]) == (["finding_margin"], ["copies"], [])


@pytest.mark.parametrize("show_real", [False, True])
def test_the_page_shows_training_images_only_when_asked(
    show_real: bool, results: dict[str, Any], sets: list[ImageSet]
) -> None:
    page = render_page(results, sets, show_real)
    for heading in ("Agreement with the finding asked for", "Dose response", "Noise", "Copies of training images"):
        assert f"<h3>{heading}</h3>" in page
    pairs = page.split("<h3>Closest pairs</h3>")[1].split("<h3>")[0]
    shown = len(results["studies"]["memorization"]["closest_pairs"])
    assert pairs.count('alt="generated image ') == shown
    assert pairs.count('alt="nearest training image of ') == (shown if show_real else 0)
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_only_copies_are_called_so(results: dict[str, Any], sets: list[ImageSet]) -> None:
    pairs = results["studies"]["memorization"]["closest_pairs"]
    called = sum(pair["copy"] for pair in pairs)
    assert 0 < called < len(pairs)
    assert render_page(results, sets).count(", called a copy") == called


def test_nothing_to_study_is_said_by_absence(sets: list[ImageSet]) -> None:
    found = run_studies(sets[:1], [])
    assert found == NO_STUDIES
    empty = {"studies": found, "measures": [], "rows": []}
    assert agreement_table(empty) is dose_table(empty) is copies_table(empty) is None
    assert detector_sentences(empty) == []


def test_an_attack_on_other_images_is_refused(sets: list[ImageSet], tmp_path: Path) -> None:
    stranger = ImageSet(SetKey(ATTACK, "tiny", 5.0), [ImageRecord("x", "p", "unknown")], sets[5].images[:1])
    with pytest.raises(ValueError, match="none of its images comes from a training nodule"):
        run_studies([*sets[:3], stranger], [CopyMeasure("copies", "Copies", planted=4)])
