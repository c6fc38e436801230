"""A data list counted: what somebody who is about to train on it needs to know.

An *example* is a pair whose region of interest lies wholly in its image: training and evaluation use these alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from nodule_plugin.data.roi import roi_bounds
from nodule_plugin.data.split import SPLITS
from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES
from nodule_plugin.lidc.consensus import EACH
from nodule_plugin.prompts import PromptTemplate, get_template

FEW = 10
"""Fewer training examples than this are said to be few: what rests on so few can be learnt by heart."""
TRAINING = SPLITS[0]
_DIAMETER_BOUNDS_MM = (4, 6, 8, 10, 15, 20, 30)
"""6 and 8 mm are the bounds of the Fleischner Society's guidelines (MacMahon et al., Radiology 2017;284:228-243)."""
Item = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a distribution.

    Attributes:
        label: the value.
        detail: the reading form's words for it.
        words: the prompt's words for it; None where prompts do not tell this value from others.
        counts: split -> how many examples have it.
    """

    label: str
    counts: Mapping[str, int]
    detail: str = ""
    words: str | None = None


@dataclass(frozen=True)
class Distribution:
    """How examples spread over the values of something, by split.

    Attributes:
        name: of that something.
        rows: one a value, those that never occur too.
        totals: split -> its examples.
        note: what a reader of the table must know.
    """

    name: str
    rows: Sequence[Row]
    totals: Mapping[str, int]
    note: str = ""


@dataclass(frozen=True)
class CrossTable:
    """How many training examples have two findings together; ``counts[row][column]``."""

    down: str
    across: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class PromptCount:
    """A prompt and, by split, how many examples have it."""

    prompt: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class SkippedGroup:
    """What was left out for one reason: the same for all, or alike but for its numbers, which "…" then stands for."""

    reason: str
    members: Sequence[Mapping[str, str]]

    @property
    def alike(self) -> bool:
        """Whether the reason is the same for all."""
        return all(one["reason"] == self.reason for one in self.members)


@dataclass(frozen=True)
class Overview:
    """Everything the page of a data list shows apart from its images.

    Attributes:
        split_headings, split_rows: a table of numbers, a row a split and one for all.
        ratings: of every finding, in the order of the reading form's scales.
        diameters, readers: of the examples; the diameters of the other pairs too, where there are any.
        together: of every two findings that prompts word.
        prompts: every prompt of the data list, the one with most training examples first.
        skipped: the largest group first.
    """

    split_headings: Sequence[str]
    split_rows: Sequence[Sequence[str]]
    ratings: Sequence[Distribution]
    diameters: Distribution
    readers: Distribution
    together: Sequence[CrossTable]
    prompts: Sequence[PromptCount]
    skipped: Sequence[SkippedGroup]

    @property
    def unseen(self) -> list[PromptCount]:
        """The prompts without a training example."""
        return [prompt for prompt in self.prompts if not prompt.counts[TRAINING]]


def count_datalist(content: Mapping[str, Any]) -> Overview:
    """Count a data list.

    Args:
        content: as :func:`nodule_plugin.data.datalist.build_datalist` makes it.

    Raises:
        InputError: if its template is not known or has another wording by now.
    """
    template = template_of(content)
    examples = examples_by_split(content)
    prompts = _count_prompts(examples)
    return Overview(
        *_count_splits(content, examples, prompts),
        ratings=[_count_rating(name, examples, template) for name in SCALES],
        diameters=_count_diameters(content, examples),
        readers=_count_readers(examples),
        together=[
            _cross(down, across, examples[TRAINING], template) for down, across in combinations(template.wording, 2)
        ],
        prompts=prompts,
        skipped=_group_skipped(content["skipped"]),
    )


def examples_by_split(content: Mapping[str, Any]) -> dict[str, list[Item]]:
    """Split -> its examples: the pairs whose ROI lies wholly in their image."""
    return {split: [item for item in content[split] if not item["padding"]] for split in SPLITS}


def template_of(content: Mapping[str, Any]) -> PromptTemplate:
    """The template that a data list's prompts are written by.

    Raises:
        InputError: if it is not known or has another wording by now.
    """
    template = get_template(content["template"]["name"])
    if template.version != content["template"]["version"]:
        raise InputError(
            f"template: the data list has version {content['template']['version']} of {template.name!r},"
            f" this is version {template.version}; run prepare again"
        )
    return template


def _count_splits(
    content: Mapping[str, Any], examples: Mapping[str, Sequence[Item]], prompts: Sequence[PromptCount]
) -> tuple[list[str], list[list[str]]]:
    columns: dict[str, Callable[[Sequence[str]], int]] = {
        "pairs": lambda splits: sum(len(content[split]) for split in splits),
        "ROI beyond the image": lambda splits: sum(len(content[split]) - len(examples[split]) for split in splits),
        "examples": lambda splits: sum(len(examples[split]) for split in splits),
        "nodules": lambda splits: len({_nodule(item, content) for split in splits for item in examples[split]}),
        "patients": lambda splits: len({item["patient_id"] for split in splits for item in examples[split]}),
        "series": lambda splits: len({item.get("series_instance_uid") for split in splits for item in examples[split]}),
        "different prompts": lambda splits: sum(any(one.counts[split] for split in splits) for one in prompts),
        "prompts of one example": lambda splits: sum(sum(one.counts[p] for p in splits) == 1 for one in prompts),
    }
    rows = [[name, *(f"{count(splits):,}" for count in columns.values())] for name, splits in _split_groups()]
    return ["split", *columns], rows


def _split_groups() -> list[tuple[str, Sequence[str]]]:
    return [*((split, (split,)) for split in SPLITS), ("all", SPLITS)]


def _nodule(item: Item, content: Mapping[str, Any]) -> str:
    """An item's nodule: where every reading is a pair of its own, several items have the same."""
    return item["id"].rpartition("-R")[0] if content["consensus"] == EACH else item["id"]


def _count_rating(name: str, examples: Mapping[str, Sequence[Item]], template: PromptTemplate) -> Distribution:
    scale, phrases = SCALES[name], template.wording.get(name)
    counted = {split: Counter(item["findings"].get(name) for item in items) for split, items in examples.items()}
    rows = [
        Row(str(code), {split: counted[split][code] for split in SPLITS}, label, phrases[code] if phrases else None)
        for code, label in scale.labels.items()
    ]
    if any(counts[None] for counts in counted.values()):
        rows.append(Row("–", {split: counted[split][None] for split in SPLITS}, "not rated"))
    return Distribution(name, rows, _totals(examples), "" if phrases else "Prompts of this template do not mention it.")


def _count_diameters(content: Mapping[str, Any], examples: Mapping[str, Sequence[Item]]) -> Distribution:
    groups = {split: list(items) for split, items in examples.items()}
    beyond = [item for split in SPLITS for item in content[split] if item["padding"]]
    if beyond:
        groups["left out"] = beyond
    edges = _DIAMETER_BOUNDS_MM
    labels = [f"below {edges[0]}", *(f"{a} to {b}" for a, b in pairwise(edges)), f"{edges[-1]} or more"]
    bins = {name: np.digitize([item["diameter_mm"] for item in items], edges) for name, items in groups.items()}
    rows = [
        Row(f"{label} mm", {name: int((bins[name] == number).sum()) for name in groups})
        for number, label in enumerate(labels)
    ]
    return Distribution("diameter", rows, _totals(groups), _size_note(examples[TRAINING]))


def _size_note(training: Sequence[Item]) -> str:
    if not training:
        return ""
    low, middle, high = np.percentile([item["diameter_mm"] for item in training], (5, 50, 95))
    sides = [roi_pixels(item) for item in training]
    return (
        f"Training: median {middle:.1f} mm, 90 % from {low:.1f} to {high:.1f} mm. The ROIs are {np.median(sides):.0f} "
        f"pixels wide in the median ({min(sides)} to {max(sides)}); larger images of them show no more detail."
    )


def roi_pixels(item: Item) -> int:
    """The height of an item's ROI in pixels of the CT."""
    top, bottom, _, _ = roi_bounds(tuple(item["centre"]), tuple(item["spacing"]), item["roi_mm"])
    return bottom - top


def _count_readers(examples: Mapping[str, Sequence[Item]]) -> Distribution:
    numbers = sorted({item["readers"] for items in examples.values() for item in items})
    rows = [
        Row(
            f"{number} reader{'' if number == 1 else 's'}",
            {split: sum(item["readers"] == number for item in items) for split, items in examples.items()},
        )
        for number in numbers
    ]
    too_many = "More than four: nodules too close to be told apart." if numbers and numbers[-1] > 4 else ""
    return Distribution("readers", rows, _totals(examples), too_many)


def _totals(groups: Mapping[str, Sequence[Item]]) -> dict[str, int]:
    return {name: len(items) for name, items in groups.items()}


def codes_by_phrase(name: str, template: PromptTemplate) -> dict[str, list[int]]:
    """Phrase -> the codes that it words: prompts of the reference template tell no kinds of calcification apart."""
    codes: dict[str, list[int]] = {}
    for code, phrase in template.wording[name].items():
        codes.setdefault(phrase, []).append(code)
    return codes


def span(codes: Sequence[int]) -> str:
    return str(codes[0]) if len(codes) == 1 else f"{codes[0]}–{codes[-1]}"


def _cross(down: str, across: str, training: Sequence[Item], template: PromptTemplate) -> CrossTable:
    rows, columns = (list(codes_by_phrase(name, template).values()) for name in (down, across))
    counts = Counter((item["findings"].get(down), item["findings"].get(across)) for item in training)
    return CrossTable(
        down,
        across,
        [span(codes) for codes in rows],
        [span(codes) for codes in columns],
        [[sum(counts[a, b] for a in row for b in column) for column in columns] for row in rows],
    )


def _count_prompts(examples: Mapping[str, Sequence[Item]]) -> list[PromptCount]:
    counted = {split: Counter(item["prompt"] for item in items) for split, items in examples.items()}
    prompts = {prompt for counts in counted.values() for prompt in counts}
    rows = [PromptCount(prompt, {split: counted[split][prompt] for split in SPLITS}) for prompt in prompts]
    return sorted(rows, key=lambda row: (*(-count for count in row.counts.values()), row.prompt))


def _group_skipped(skipped: Iterable[Mapping[str, str]]) -> list[SkippedGroup]:
    """Reasons that differ in their numbers only are one group."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for one in skipped:
        groups.setdefault(re.sub(r"-?\d+(\.\d+)?", "…", one["reason"]), []).append(one)
    named = [
        SkippedGroup(members[0]["reason"] if len({one["reason"] for one in members}) == 1 else pattern, members)
        for pattern, members in groups.items()
    ]
    return sorted(named, key=lambda group: (-len(group.members), group.reason))
