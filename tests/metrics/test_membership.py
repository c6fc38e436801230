from __future__ import annotations

import numpy as np
import pytest
import torch

from nodule_plugin.metrics.membership import (
    describe_attack,
    detection_rate,
    likelihood_ratio_scores,
    nearest_generated_scores,
    patient_scores,
)


def _losses(models: int, known: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses of 400 images, very different in difficulty, of reference models and of one that knows half of them."""
    draw = np.random.default_rng(seed)
    difficulty = draw.normal(0, 2, (400, 3))
    references = np.exp(difficulty + draw.normal(0, 0.1, (models, 400, 3)))
    own = difficulty + draw.normal(0, 0.1, (400, 3))
    own[:200] -= known
    return np.exp(own), references


@pytest.mark.parametrize(("known", "low", "high"), [(0.0, 0.0, 0.05), (0.3, 0.8, 1.0)])
def test_reference_models_take_difficulty_out(known: float, low: float, high: float) -> None:
    losses, references = _losses(4, known)
    scores = likelihood_ratio_scores(losses, references, np.ones((4, 400), bool))
    assert low <= (detection_rate(scores[:200], scores[200:], 0.01) or 0.0) <= high
    by_loss = -losses.mean(axis=1)  # without references the easy images win, whoever knows them
    assert (detection_rate(by_loss[:200], by_loss[200:], 0.01) or 0.0) < 0.1


def test_models_that_saw_a_patient_do_not_count() -> None:
    losses, references = _losses(4, 0.3)
    unseen = np.ones((4, 400), bool)
    alone = likelihood_ratio_scores(losses, references[:2], unseen[:2])
    references[2:], unseen[2:] = 1e-6, False
    np.testing.assert_allclose(likelihood_ratio_scores(losses, references, unseen), alone)


def test_a_patient_is_the_mean_of_their_images() -> None:
    assert patient_scores(np.array([1.0, 5.0, 3.0]), ["b", "a", "b"]) == {"b": 2.0, "a": 5.0}


def test_a_rate_that_so_few_patients_cannot_show_is_not_invented() -> None:
    held_out = np.arange(100.0)
    assert detection_rate(np.array([98.5, 99.5, 1.0, 2.0]), held_out, 0.01) == 0.5  # one of the hundred may lie above
    assert detection_rate(held_out, held_out, 0.001) is None
    told = describe_attack(held_out, held_out)
    assert told["smallest_false_positive_rate"] == 0.01
    assert [rate["value"] for rate in told["rates"]] == [0.01, None]
    assert told["rates"][1]["ci95"] is None


def test_intervals_hold_the_truth_and_have_a_width_where_nobody_is_found() -> None:
    draw = np.random.default_rng(1)
    told = describe_attack(draw.normal(size=300), draw.normal(size=120))
    low, high = told["area"]["ci95"]
    assert low < 0.5 < high
    assert high - low == pytest.approx(
        2 * 1.96 * np.sqrt((300 + 120 + 1) / (12 * 300 * 120)), rel=0.12
    )  # of U by chance
    assert told["smallest_false_positive_rate"] == 1 / 120
    assert told["rates"][0]["ci95"][0] <= 0.01 <= told["rates"][0]["ci95"][1]
    none = describe_attack(np.zeros(300), np.arange(1.0, 121.0))["rates"][0]
    assert none["value"] == 0.0
    assert none["ci95"] == pytest.approx([0.0, 0.0122], abs=1e-4)  # Clopper and Pearson of 0 of 300


def test_an_image_is_compared_with_those_of_its_own_prompt() -> None:
    images = torch.randint(0, 256, (4, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one, two, three, four = images.expand(-1, 3, -1, -1)
    scores = nearest_generated_scores([one, one, three], ["p", "q", "q"], {"p": [one, two], "q": [four, two]})
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores[1:].max() < 0.9
