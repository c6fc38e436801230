"""What to know of a data list before training on it, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nodule_plugin.data.overview import (
    FEW,
    TRAINING,
    Item,
    Overview,
    codes_by_phrase,
    examples_by_split,
    span,
    template_of,
)
from nodule_plugin.data.split import SPLITS
from nodule_plugin.findings import SCALES
from nodule_plugin.prompts import PromptTemplate


def dataset_warnings(content: Mapping[str, Any], overview: Overview) -> list[str]:
    """The gravest first: files in doubt, the split, words without examples, prompts of few, what prompts cannot say.

    Args:
        content: of the data list.
        overview: its counts.
    """
    template = template_of(content)
    examples = examples_by_split(content)
    return [
        *_of_doubts(content),
        *_of_the_split(content, examples),
        *_of_words(examples[TRAINING], template),
        *_of_prompts(examples, overview, template),
        *_of_the_template(template),
    ]


def _of_doubts(content: Mapping[str, Any]) -> list[str]:
    names: dict[str, list[str]] = {}
    for doubt in content.get("doubts", ()):  # absent from data lists of earlier versions
        names.setdefault(doubt["reason"], []).append(doubt["what"])
    return [f"{_listed(nodules)} may be read wrongly: {reason}." for reason, nodules in names.items()]


def _of_the_split(content: Mapping[str, Any], examples: Mapping[str, Sequence[Item]]) -> list[str]:
    splits_of: dict[str, set[str]] = {}
    for split in SPLITS:
        for item in content[split]:
            splits_of.setdefault(item["patient_id"], set()).add(split)
    divided = sorted(patient for patient, splits in splits_of.items() if len(splits) > 1)
    sentences = []
    if divided:
        verb = "is" if len(divided) == 1 else "are"
        sentences.append(
            f"{_listed(divided)} {verb} in more than one split: no test on such a division can be trusted."
        )
    spelt: dict[str, set[str]] = {}
    for patient in splits_of:
        spelt.setdefault(patient.casefold(), set()).add(patient)
    sentences += [
        f"{' and '.join(sorted(names))} count as different patients: is it one, spelt in two ways?"
        for names in spelt.values()
        if len(names) > 1
    ]
    sentences += [f"The {split} split has no example." for split in SPLITS if not examples[split]]
    left_out = [item["diameter_mm"] for split in SPLITS for item in content[split] if item["padding"]]
    kept = [item["diameter_mm"] for split in SPLITS for item in examples[split]]
    if left_out:
        against = f", the others' {np.median(kept):.1f} mm" if kept else ""
        sentences.append(
            f"ROIs that reach beyond their image: {len(left_out):,} (median diameter {np.median(left_out):.1f} mm"
            f"{against}). Training and evaluation leave them out. All counts below are of the others, the examples."
        )
    return sentences


def _of_words(training: Sequence[Item], template: PromptTemplate) -> list[str]:
    none, few = {}, {}
    for name in template.wording:
        counts = Counter(item["findings"].get(name) for item in training)
        values = {
            f"{span(codes)} ({_quoted(phrase)})": sum(counts[code] for code in codes)
            for phrase, codes in codes_by_phrase(name, template).items()
        }
        none[name] = [value for value, count in values.items() if count == 0]
        few[name] = [f"{value} {count}" for value, count in values.items() if 0 < count < FEW]
    sentences = []
    if any(none.values()):
        sentences.append(f"No training example, so nothing to learn these words from: {_by_rating(none)}.")
    if any(few.values()):
        sentences.append(f"Fewer than {FEW} training examples: {_by_rating(few)}.")
    return sentences


def _of_prompts(examples: Mapping[str, Sequence[Item]], overview: Overview, template: PromptTemplate) -> list[str]:
    sentences = []
    counts = [prompt.counts[TRAINING] for prompt in overview.prompts if prompt.counts[TRAINING]]
    if counts:
        once, few = sum(count == 1 for count in counts), sum(count < FEW for count in counts)
        sentences.append(
            f"{_plural(len(examples[TRAINING]), 'training example')} with {_plural(len(counts), 'different prompt')}, "
            f"of {template.prompts:,} that the template {template.name!r} can write. Prompts of a single example: "
            f"{once:,}, with fewer than {FEW}: {few:,}. What rests on one nodule can be learnt by heart."
        )
    for split in SPLITS[1:]:
        unseen = [prompt for prompt in overview.unseen if prompt.counts[split]]
        if unseen:
            nodules, total = sum(prompt.counts[split] for prompt in unseen), len(examples[split])
            sentences.append(
                f"{nodules:,} of {_plural(total, f'{split} example')} ({100 * nodules / total:.0f} %) "
                f"{'has' if nodules == 1 else 'have'} a prompt without a training example "
                f"({_plural(len(unseen), 'prompt')})."
            )
    return sentences


def _of_the_template(template: PromptTemplate) -> list[str]:
    unworded = [name.replace("_", " ") for name in SCALES if name not in template.wording]
    merged = [name for name in template.wording if any(len(c) > 1 for c in codes_by_phrase(name, template).values())]
    sentences = []
    if unworded:
        sentences.append(f"Prompts do not mention {_listed(unworded)}: a model cannot be asked for them.")
    return sentences + [
        f"Prompts word several kinds of {name} alike; the table of its ratings shows which." for name in merged
    ]


def _by_rating(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {', '.join(codes)}" for name, codes in values.items() if codes)


def _quoted(phrase: str) -> str:
    return f"“{phrase.rstrip('.')}”" if phrase else "not mentioned"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
