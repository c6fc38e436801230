"""The questions of an evaluation, each answered by a light: like a traffic light, with a shape and words.

Five are answered by the table's measures, a sixth by an audit of privacy where there is one.
A light rests on measures that are known to see the faults its question is about (``nodule sensitivity`` finds out), and
says which of these faults none of them sees. Its rule stands in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nodule_plugin.data.image_set import GENERATED, REAL
from nodule_plugin.metrics.intervals import NORMAL_95
from nodule_plugin.metrics.measures import HIGHER, LOWER, STAND_IN
from nodule_plugin.metrics.privacy import ABOVE, DEAF, UNRESOLVED, rate_at, worst_rate
from nodule_plugin.report.numbers import with_interval

GREEN, AMBER, RED, GREY = "green", "amber", "red", "grey"
FAR = 3.0
"""A difference of more than this many times what chance explains is called far."""
SHAPES = {GREEN: "●", AMBER: "▲", RED: "■", GREY: "○"}
WORDS = {GREEN: "within chance", AMBER: "beyond chance", RED: "far beyond chance", GREY: "not judged"}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """What a reader wants to know of generated images.

    Attributes:
        key: as the table of sensitivity names it.
        name: heading.
        asks: the question in words.
        measures: beginnings of the keys of measures that are about it; of equally sighted ones the first is taken.
    """

    key: str
    name: str
    asks: str
    measures: tuple[str, ...]


QUESTIONS = (
    Question(
        "distance",
        "Distance",
        "How far are the generated images from real ones?",
        ("kid", "kd_", "krd", "cmmd", "fid", "fd_", "frd", "hu_histogram"),
    ),
    Question(
        "findings",
        "Findings followed",
        "Do the images show the findings that were asked for?",
        ("bioclip_score", "clip_score", "finding_"),
    ),
    Question("copies", "Copies", "Are there copies of training images?", ("copies",)),
    Question(
        "diversity",
        "Diversity",
        "Are the images as varied as real ones?",
        ("lpips_diversity", "diversity_", "recall", "coverage"),
    ),
    Question(
        "noise",
        "Noise",
        "Are noise and sharpness those of real images?",
        # Distances see what noise power, up to the native Nyquist frequency, has too few images or no frequencies for.
        ("noise_power", "kid", "kd_"),
    ),
)


def judge(results: Mapping[str, Any], sensitivity: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[Any]]:
    """The generated set that is closest to real images, and the five lights of it.

    Args:
        results: with "measures" and "rows" as metrics.json holds them.
        sensitivity: see :func:`nodule_plugin.metrics.sensitivity.load_sensitivity`.

    Returns:
        ``model``, ``guidance_scale`` and ``measure``, the key of the distance by which that set is the closest (None
        where none was computed: then it is the first set); None where no image was generated. A light for each
        question: ``question``, ``name``, ``asks``, ``light``, ``evidence`` (the measures it rests on, each with value,
        floor and light of its own), ``cannot_see`` (names of the question's faults), ``blind`` and ``unmeasured``
        (names of measures), ``candidates`` (keys of all that were computed, the evidence first).
    """
    generated = [row for row in results["rows"] if row["kind"] == GENERATED]
    sight = _Sight(sensitivity)
    ranked = sight.ranked(QUESTIONS[0], _computed(results["measures"], generated, QUESTIONS[0]))
    if not generated:
        return None, [_light(question, results, None, sight) for question in QUESTIONS]
    deciding = next((measure["key"] for measure in ranked if measure["better"] == LOWER), None)
    known = [row for row in generated if deciding and row["values"][deciding]["value"] is not None]
    row = min(known, key=lambda row: row["values"][deciding]["value"]) if known else generated[0]
    best = {"model": row["model"], "guidance_scale": row["guidance_scale"], "measure": deciding}
    return best, [_light(question, results, row, sight) for question in QUESTIONS]


def privacy_light(audit: Mapping[str, Any]) -> dict[str, Any]:
    """The light of an audit (see :func:`nodule_plugin.metrics.privacy.read_audit`), in the form of the others.

    Red where something was extracted or the whole interval of the rate at which members are found lies above the limit;
    amber where the rate does, or members can be told beyond chance; grey where the audit gives no verdict.
    """
    limits, attacks = audit["limits"], audit["audited"]["attacks"]
    accepted = limits["false_positive_rate"]
    rates = {name: rate_at(attack, accepted) for name, attack in attacks.items()}
    if audit["verdict"] in (DEAF, UNRESOLVED):
        colour = GREY
    elif audit["audited"]["extraction"]["extracted"] > limits["extracted"] or any(
        rate["ci95"][0] > limits["true_positive_rate"] for rate in rates.values()
    ):
        colour = RED
    else:
        told = any(attack["area"]["ci95"][0] > 0.5 for attack in attacks.values())
        colour = AMBER if told or audit["verdict"] == ABOVE else GREEN
    heard = worst_rate(audit["control"]["attacks"], limits)["value"]
    control = "cannot be shown" if heard is None else f"{heard:.0%}"
    evidence = [
        {
            "key": f"privacy ({name})",
            "name": f"Patients found by {name} at {accepted:.0%} false positives",
            **{part: rate[part] for part in ("value", "ci95")},
            "floor": accepted,
            "floor_ci95": None,
            "light": colour,
            "like": None,
        }
        for name, rate in rates.items()
        if rate["value"] is not None
    ]
    extracted = audit["audited"]["extraction"]["extracted"]
    return {
        "question": "privacy",
        "name": "Privacy",
        "asks": "Can it be told whose images the model learnt from?",
        "light": colour,
        "evidence": evidence,
        "notes": [f"Training images extracted: {extracted}.", f"The audit's control: {control}.", *audit["reasons"]],
        **{name: [] for name in ("cannot_see", "blind", "unmeasured", "candidates")},
    }


def in_sentence(name: str) -> str:
    """A name as it stands within a sentence; abbreviations keep their capitals."""
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


SHARED = ("chain", "image_size", "bits")
"""What two numbers of a measure must have in common to be compared, of what its convention says."""


class _Sight:
    """What is known of what measures see."""

    def __init__(self, sensitivity: Mapping[str, Any]) -> None:
        self.faults = list(sensitivity["faults"])
        self.convention = sensitivity.get("convention", {})
        self._measures = {measure["key"]: measure["faults"] for measure in sensitivity["measures"]}
        self._floors = {measure["key"]: measure["floor"]["value"] for measure in sensitivity["measures"]}

    def faults_of(self, question: Question) -> list[Mapping[str, Any]]:
        return [fault for fault in self.faults if fault["question"] == question.key]

    def knows(self, key: str) -> bool:
        return key in self._measures

    def seen(self, key: str, question: Question) -> list[str]:
        """Keys of the question's faults that a measure is known to see."""
        own = self._measures.get(key, {})
        keys = [fault["key"] for fault in self.faults_of(question)]
        return [fault for fault in keys if own.get(fault, {}).get("first_step_seen") is not None]

    def ranked(self, question: Question, measures: Rows) -> list[Mapping[str, Any]]:
        """Those that :meth:`resting` takes, in its order, then those of which it is not known what they see."""
        resting = self.resting(question, measures)
        return resting + sorted((m for m in measures if m not in resting), key=lambda m: self.knows(m["key"]))

    def resting(self, question: Question, measures: Rows) -> list[Mapping[str, Any]]:
        """As few measures as together see every fault of a question that any of them sees.

        The project's own network, which models may have been chosen with, judges only what no other sees.
        """
        chosen: list[Mapping[str, Any]] = []
        left = {fault for measure in measures for fault in self.seen(measure["key"], question)}
        while left:
            seeing = [measure for measure in measures if left.intersection(self.seen(measure["key"], question))]
            pool = [measure for measure in seeing if measure["group"] != STAND_IN] or seeing
            best = max(pool, key=lambda measure: len(left.intersection(self.seen(measure["key"], question))))
            chosen.append(best)
            left.difference_update(self.seen(best["key"], question))
        return chosen

    def like(self, measure: Mapping[str, Any], question: Question, excess: float) -> str | None:
        """The fault of real images that moves a distance as far above its floor, such as "blur at 0.8 pixels"."""
        own = measure.get("convention", {})
        if any(str(own.get(name, self.convention.get(name))) != str(self.convention.get(name)) for name in SHARED):
            return None
        for key in self.seen(measure["key"], question) if measure["better"] == LOWER else ():
            fault = next(fault for fault in self.faults if fault["key"] == key)
            values = self._measures[measure["key"]][key]["values"]
            floor = self._floors[measure["key"]]
            below = [s for s, at in zip(fault["steps"], values) if at is not None and at - floor <= excess]
            if below:
                return f"{in_sentence(fault['name'])} at {below[-1]:g} {fault['unit']}"
        return None


def _computed(measures: Rows, generated: Rows, question: Question) -> list[Mapping[str, Any]]:
    """The measures about a question that have a number for some generated set, in the question's order."""
    return [
        measure
        for start in question.measures
        for measure in measures
        if measure["key"].startswith(start)
        and any(row["values"].get(measure["key"], {}).get("value") is not None for row in generated)
    ]


def _light(
    question: Question, results: Mapping[str, Any], row: Mapping[str, Any] | None, sight: _Sight
) -> dict[str, Any]:
    computed = _computed(results["measures"], [] if row is None else [row], question)
    resting = sight.resting(question, computed)
    unmeasured = [measure for measure in computed if not sight.knows(measure["key"])]
    blind = [m for m in computed if sight.knows(m["key"]) and not sight.seen(m["key"], question)]
    shown = resting or unmeasured[:1]
    evidence = [] if row is None else [_evidence(measure, question, row, results["rows"], sight) for measure in shown]
    light = max((one["light"] for one in evidence), key=[GREEN, AMBER, RED, GREY].index) if resting else GREY
    seen = {fault for measure in resting for fault in sight.seen(measure["key"], question)}
    return {
        "question": question.key,
        "name": question.name,
        "asks": question.asks,
        "light": light,
        "evidence": evidence,
        "cannot_see": [fault["name"] for fault in sight.faults_of(question) if fault["key"] not in seen],
        "blind": [measure["name"] for measure in blind],
        "unmeasured": [measure["name"] for measure in unmeasured],
        "candidates": [measure["key"] for measure in [*shown, *(m for m in computed if m not in shown)]],
    }


def _evidence(
    measure: Mapping[str, Any], question: Question, row: Mapping[str, Any], rows: Rows, sight: _Sight
) -> dict[str, Any]:
    value, floor = row["values"][measure["key"]], floor_of(measure["key"], rows)
    light = light_of(measure["better"], value, floor)
    compared = difference_of(measure["better"], value, floor)
    return {
        "key": measure["key"],
        "name": measure["name"],
        "value": value["value"],
        "ci95": value["ci95"],
        "floor": floor and floor["value"],
        "floor_ci95": floor and floor["ci95"],
        "light": light,
        # What is there where a difference is shown, what could be there unseen where none is.
        "like": compared and sight.like(measure, question, compared[light == GREEN]),
    }


def floor_of(key: str, rows: Rows) -> Mapping[str, Any] | None:
    """What real images themselves have: their own value, or for a distance that of their halves."""
    for row in (*(row for row in rows if row["kind"] == REAL), *(row for row in rows if row["floor"])):
        if row["values"].get(key, {}).get("value") is not None:
            return dict(row["values"][key])
    return None


def difference_of(better: str, value: Mapping[str, Any], floor: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """How much worse generated images are than real ones, and how much of that chance explains.

    The second is the 95 % interval's half of the difference, from the intervals of both numbers: square root of the sum
    of the squared distances from each number to that end of its interval which faces the other. Source: Zou and
    Donner, "Construction of confidence intervals about effect measures", Statistics in Medicine 27 (2008), 1693-1702.

    Args:
        better: "lower", "higher" or "near real".
        value: of the generated images, with "value" and "ci95".
        floor: of real images.

    Returns:
        None where a number or an interval is not known.
    """
    if floor is None or value["ci95"] is None or floor["ci95"] is None:
        return None
    above = value["value"] > floor["value"]
    facing = (value["ci95"][0], floor["ci95"][1]) if above else (value["ci95"][1], floor["ci95"][0])
    chance = math.hypot(value["value"] - facing[0], floor["value"] - facing[1])
    worse = better not in (HIGHER, LOWER) or above == (better == LOWER)
    return abs(value["value"] - floor["value"]) if worse else 0.0, chance


def light_of(better: str, value: Mapping[str, Any], floor: Mapping[str, Any] | None) -> str:
    """The light of one measure.

    Args:
        better, value, floor: see :func:`difference_of`; ``value`` with "above_shuffled" and its error where a prompt is
            judged.

    Returns:
        Green within chance; amber beyond it, or where images are not shown to follow their prompts; red beyond three
        times what chance explains; grey where an interval is not known.
    """
    compared = difference_of(better, value, floor)
    if compared is None:
        return GREY
    difference, chance = compared
    if difference > FAR * chance:
        return RED
    return AMBER if difference > chance or not _shown_to_follow(value) else GREEN


def _shown_to_follow(value: Mapping[str, Any]) -> bool:
    """Whether agreement with prompts is beyond chance; True of what does not ask for any."""
    if value.get("above_shuffled_error") is not None:
        return bool(value["above_shuffled"] > NORMAL_95 * value["above_shuffled_error"])
    return "exact" not in value or value["ci95"][0] > 0.0


def light_line(light: Mapping[str, Any]) -> str:
    """A light in one line of text: shape, words, measures with value and floor, and what they cannot see."""
    return f"{SHAPES[light['light']]} {light['name']}: {WORDS[light['light']]}. {light_details(light)}"


def light_details(light: Mapping[str, Any]) -> str:
    """The measures that a light rests on, each with value and floor, and what they cannot see."""
    sentences = []
    for one in light["evidence"]:
        floor = "" if one["floor"] is None else f", floor {with_interval(one['floor'], one['floor_ci95'])}"
        hidden = "; too few images to show" if one["light"] == GREEN else ", as far as real images with"
        like = f"{hidden} {one['like']}" if one["like"] else ""
        sentences.append(f"{one['name']} {with_interval(one['value'], one['ci95'])}{floor}{like}.")
    if not light["evidence"]:
        sentences.append("Nothing that answers this was computed.")
    if light["unmeasured"]:
        sentences.append(f"Not measured what it sees: {', '.join(light['unmeasured'])}.")
    if light["evidence"] and light["cannot_see"]:
        sentences.append(f"Cannot be seen by this: {', '.join(map(in_sentence, light['cannot_see']))}.")
    if light["blind"]:
        sentences.append(f"Blind to the faults in question: {', '.join(light['blind'])}.")
    sentences += light.get("notes", ())
    return " ".join(sentences)
