from __future__ import annotations

from typing import Any

import pytest

from nodule_plugin.data.image_set import GENERATED, REAL
from nodule_plugin.metrics.privacy import DEAF, LIMITS, UNRESOLVED
from nodule_plugin.metrics.sensitivity import load_sensitivity
from nodule_plugin.report.lights import (
    AMBER,
    GREEN,
    GREY,
    QUESTIONS,
    RED,
    judge,
    light_details,
    light_of,
    privacy_light,
)
from nodule_plugin.report.results import verdict

FAULTS = [
    {"key": "blur", "name": "Blur", "question": "distance", "unit": "pixels", "steps": [0.5, 1.0]},
    {"key": "shift", "name": "HU shift", "question": "distance", "unit": "HU", "steps": [20, 50]},
    {"key": "turn", "name": "Rotation", "question": "distance", "unit": "degrees", "steps": [5, 10]},
    {"key": "swap", "name": "Findings swapped", "question": "findings", "unit": "fraction", "steps": [0.2, 0.5]},
]
MEASURES = {"kd_a": "KD (A)", "kd_b": "KD (B)", "krd": "KRD", "fid": "FID", "clip_score_tiny": "Tiny CLIPScore"}


def _sees(**first: float | None) -> dict[str, Any]:
    return {key: {"values": [0.2, 0.6], "first_step_seen": step} for key, step in first.items()}


SENSITIVITY: dict[str, Any] = {
    "convention": {"image_size": 64},
    "faults": FAULTS,
    "measures": [
        {"key": "kd_a", "floor": {"value": 0.0}, "faults": _sees(blur=None, shift=None, turn=None)},
        {"key": "kd_b", "floor": {"value": 0.0}, "faults": _sees(blur=0.5, shift=None, turn=None)},
        {"key": "krd", "floor": {"value": 0.05}, "faults": _sees(blur=1.0, shift=20, turn=None)},
        {"key": "clip_score_tiny", "floor": {"value": 0.3}, "faults": _sees(swap=0.2)},
    ],
}


def _value(value: float, half: float = 0.1, **details: Any) -> dict[str, Any]:
    return {"value": value, "standard_error": half / 1.96, "ci95": [value - half, value + half], **details}


NONE = {"value": None, "standard_error": None, "ci95": None}


def _results(distances: dict[str, float], score: float = 0.3, **details: Any) -> dict[str, Any]:
    """Floors of 0 for distances and a real score of 0.3; two generated sets, the first as given, the second worse."""
    asked = {"above_shuffled": 0.2, "above_shuffled_error": 0.01} | details
    values = [
        {key: _value(at + worse) for key, at in distances.items()} | {"clip_score_tiny": _value(score, 0.02, **asked)}
        for worse in (0.0, 1.0)
    ]
    rows = [
        {"kind": REAL, "floor": False, "model": "real images", "guidance_scale": None},
        {"kind": "control", "floor": True, "model": "halves", "guidance_scale": None},
        *({"kind": GENERATED, "floor": False, "model": "tiny", "guidance_scale": scale} for scale in (3.0, 9.0)),
    ]
    own = [{"clip_score_tiny": _value(0.3, 0.02)}, dict.fromkeys(distances, _value(0.0)), *values]
    better = {key: "higher" if key == "clip_score_tiny" else "lower" for key in MEASURES}
    return {
        "reference": "real images",
        "measures": [
            {"key": key, "name": name, "better": better[key], "standard": False, "convention": {"image_size": 64}}
            | {"group": "beyond"}
            for key, name in MEASURES.items()
        ],
        "rows": [row | {"values": dict.fromkeys(MEASURES, NONE) | known} for row, known in zip(rows, own)],
    }


def _lights(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {light["question"]: light for light in judge(results, SENSITIVITY)[1]}


@pytest.mark.parametrize(
    ("better", "value", "light"),
    [
        ("lower", 1.1, GREEN),  # 0.14 is what two intervals of 0.1 to either side explain
        ("lower", 1.13, GREEN),
        ("lower", 1.2, AMBER),
        ("lower", 1.5, RED),
        ("lower", 0.1, GREEN),  # nearer than halves of the real images are
        ("higher", 0.8, AMBER),
        ("higher", 0.5, RED),
        ("higher", 1.5, GREEN),
        ("near real", 1.2, AMBER),
        ("near real", 0.5, RED),
    ],
)
def test_a_light_compares_the_difference_with_chance(better: str, value: float, light: str) -> None:
    assert light_of(better, _value(value), _value(1.0)) == light


def test_of_lopsided_intervals_the_ends_that_face_each_other_count() -> None:
    assert light_of("lower", {"value": 1.2, "ci95": [1.15, 1.6]}, _value(1.0)) == AMBER
    assert light_of("higher", {"value": 0.8, "ci95": [0.4, 0.85]}, _value(1.0)) == AMBER


@pytest.mark.parametrize(("kappa", "light"), [(0.3, GREEN), (0.05, AMBER)])
def test_findings_that_agree_by_chance_are_not_green(kappa: float, light: str) -> None:
    assert light_of("higher", _value(kappa, exact=0.4), _value(kappa)) == light


def test_without_an_interval_nothing_is_judged() -> None:
    assert light_of("lower", _value(1.0) | {"ci95": None}, _value(1.0)) == GREY
    assert light_of("lower", _value(1.0), None) == GREY


def test_a_light_rests_on_those_that_together_see_most() -> None:
    results = _results({"kd_a": 0.05, "kd_b": 0.0, "krd": 0.05})
    light = _lights(results)["distance"]
    assert [one["key"] for one in light["evidence"]] == ["krd"]  # sees the blur, too: kd_b adds nothing
    assert (light["light"], light["cannot_see"], light["blind"]) == (GREEN, ["Rotation"], ["KD (A)"])
    told = light_details(light)
    assert "Cannot be seen by this: rotation." in told
    assert "Blind to the faults in question: KD (A)." in told
    without = _lights(_results({"kd_a": 0.05, "kd_b": 0.0}))["distance"]
    assert ([one["key"] for one in without["evidence"]], without["cannot_see"]) == (["kd_b"], ["HU shift", "Rotation"])


def test_the_projects_own_network_judges_only_what_no_other_sees() -> None:
    results = _results({"kd_b": 0.0, "krd": 0.7})
    for measure in results["measures"]:
        measure["group"] = "stand-in" if measure["key"] == "krd" else "backbones"
    best, lights = judge(results, SENSITIVITY)
    assert best is not None
    assert best["measure"] == "kd_b"  # though krd sees more
    assert [(one["key"], one["light"]) for one in lights[0]["evidence"]] == [("kd_b", GREEN), ("krd", RED)]
    assert lights[0]["light"] == RED  # the worst of them


@pytest.mark.parametrize(("distance", "light"), [(0.1, GREEN), (0.3, AMBER), (0.7, RED)])
def test_lights_follow_the_numbers(distance: float, light: str) -> None:
    results = _results({"krd": distance})
    best, lights = judge(results, SENSITIVITY)
    assert best == {"model": "tiny", "guidance_scale": 3.0, "measure": "krd"}
    assert lights[0]["light"] == light
    sentences = verdict(results | {"best": best, "lights": lights})
    assert len(sentences) == 3
    words = {GREEN: "is within chance in dist", AMBER: "is beyond chance in dist", RED: "is far beyond chance in dist"}
    assert words[light] in sentences[1]


@pytest.mark.parametrize(
    ("distance", "half", "told"),
    [
        (0.3, 0.1, ", as far as real images with blur at 0.5 pixels."),
        (0.7, 0.1, ", as far as real images with blur at 1 pixels."),
        (0.57, 0.1, ", as far as real images with blur at 1 pixels."),  # 0.6 less the floor of 0.05
        (0.0, 0.5, "; too few images to show blur at 0.5 pixels."),
        (0.0, 0.1, "floor 0.00 [-0.10, 0.10]. Cannot"),
    ],
)
def test_a_distance_is_told_in_steps_of_a_fault(distance: float, half: float, told: str) -> None:
    results = _results({"krd": distance})
    results["rows"][2]["values"]["krd"] = _value(distance, half)
    assert told in light_details(_lights(results)["distance"])


def test_another_convention_is_not_told_in_steps_of_a_fault() -> None:
    other_size = _results({"krd": 0.7})
    for measure in other_size["measures"]:
        measure["convention"] = {"image_size": 512}
    assert _lights(other_size)["distance"]["evidence"][0]["like"] is None


def test_a_blind_measure_gives_no_light() -> None:
    light = _lights(_results({"kd_a": 0.0}))["distance"]
    assert (light["light"], light["evidence"], light["blind"]) == (GREY, [], ["KD (A)"])


def test_a_measure_of_which_nothing_is_known_gives_no_light() -> None:
    light = _lights(_results({"fid": 0.0}))["distance"]
    assert (light["light"], light["unmeasured"]) == (GREY, ["FID"])
    assert "Not measured what it sees: FID." in light_details(light)


@pytest.mark.parametrize(("above", "light"), [(0.2, GREEN), (0.01, AMBER)])
def test_images_that_are_not_shown_to_follow_are_not_green(above: float, light: str) -> None:
    assert _lights(_results({}, 0.3, above_shuffled=above))["findings"]["light"] == light


def test_every_question_is_answered_even_where_nothing_is_known() -> None:
    lights = judge({"measures": [], "rows": []}, SENSITIVITY)[1]
    assert [light["question"] for light in lights] == [question.key for question in QUESTIONS]
    assert {light["light"] for light in lights} == {GREY}


def test_the_shipped_table_asks_these_questions() -> None:
    asked = {fault["question"] for fault in load_sensitivity()["faults"]}
    assert asked <= {question.key for question in QUESTIONS}


@pytest.mark.parametrize(
    ("rate", "area", "extracted", "verdict", "light"),
    [
        (0.01, 0.52, 0, "within limits", GREEN),
        (0.01, 0.60, 0, "within limits", AMBER),  # members can be told, though none for sure
        (0.03, 0.52, 0, "above limits", AMBER),
        (0.10, 0.70, 0, "above limits", RED),
        (0.00, 0.50, 1, "above limits", RED),
        (0.10, 0.70, 1, DEAF, GREY),
        (0.00, 0.50, 0, UNRESOLVED, GREY),
    ],
)
def test_the_light_of_an_audit(rate: float, area: float, extracted: int, verdict: str, light: str) -> None:
    rates = [{"false_positive_rate": 0.01, "value": rate, "ci95": [max(0.0, rate - 0.02), rate + 0.02]}]
    attack = {"rates": rates, "area": {"value": area, "ci95": [area - 0.05, area + 0.05]}}
    model = {"attacks": {"denoising loss": attack}, "extraction": {"extracted": extracted}}
    audit = {"limits": LIMITS, "audited": model, "control": model, "verdict": verdict, "reasons": ["Because."]}
    told = privacy_light(audit)
    assert told["light"] == light
    assert light_details(told).startswith("Patients found by denoising loss at 1% false positives 0.")
    assert light_details(told).endswith(
        f"Training images extracted: {extracted}. The audit's control: {rate:.0%}. Because."
    )
    assert "privacy" in verdict_of(told)


def verdict_of(light: dict[str, Any]) -> str:
    """The verdict's sentence about lights, where an audit's is one of them."""
    best, lights = judge(_results({"krd": 0.0}), SENSITIVITY)
    return verdict(_results({"krd": 0.0}) | {"best": best, "lights": [*lights, light]})[1]
