"""Findings to prompts, by named and versioned templates, and back where a template says enough.

The ``reference`` template words the findings as Urata et al. print them. The ``detailed`` template adds lobulation, the
kind of calcification and malignancy, and can be read back without loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from nodule_plugin.errors import InputError
from nodule_plugin.findings import CALCIFICATION_ABSENT, SCALES, Findings

Phrases = Mapping[int, str]

_SHAPE: Phrases = {1: "linear", 2: "nearly linear", 3: "oval", 4: "nearly round", 5: "round"}
_TEXTURE: Phrases = {
    1: "ground-glass internally",
    2: "mostly ground-glass internally",
    3: "part-solid internally",
    4: "mostly solid internally",
    5: "solid internally",
}
_MARGIN: Phrases = {
    1: "poorly defined margins",
    2: "mostly poorly defined margins",
    3: "relatively well-defined margins",
    4: "mostly well-defined margins",
    5: "well-defined margins",
}
_DEGREE: Phrases = {1: "", 2: "slight", 3: "moderate", 4: "nearly marked", 5: "marked"}
_OPENING: dict[str, Phrases] = {"sphericity": _SHAPE, "texture": _TEXTURE, "margin": _MARGIN}


@dataclass(frozen=True)
class PromptTemplate:
    """A way of wording findings: one opening sentence and, after it, a sentence for each further rating.

    Attributes:
        name: what configurations and manifests call it.
        version: changes with every change of wording, so that a data list says which wording it holds.
        opening: format string over ``sphericity``, ``texture`` and ``margin``.
        remarks: rating -> code -> sentence; an empty sentence is left out. A rating that is None is left out too.
    """

    name: str
    version: int
    opening: str
    remarks: Mapping[str, Phrases]

    def render(self, findings: Findings) -> str:
        """The prompt of ``findings``."""
        opening = self.opening.format(
            sphericity=_SHAPE[findings.sphericity],
            texture=_TEXTURE[findings.texture],
            margin=_MARGIN[findings.margin],
        )
        ratings = findings.to_dict()
        remarks = (phrases[ratings[name]] for name, phrases in self.remarks.items() if name in ratings)
        return " ".join(sentence for sentence in (opening, *remarks) if sentence)

    @property
    def wording(self) -> dict[str, Phrases]:
        """Rating -> code -> what a prompt says of it (nothing where that is empty), for the ratings it words."""
        return {**_OPENING, **self.remarks}

    @property
    def prompts(self) -> int:
        """How many different prompts it can write of complete ratings."""
        return math.prod(len(set(phrases.values())) for phrases in self.wording.values())


_REFERENCE = PromptTemplate(
    name="reference",
    version=1,
    opening="The nodule is {sphericity} in shape, {texture}, with {margin}.",
    remarks={
        # Lower case after the full stop is the reference method's own spelling.
        "spiculation": {code: f"{word} spiculation is seen." if word else "" for code, word in _DEGREE.items()},
        "calcification": {
            code: "" if code == CALCIFICATION_ABSENT else "calcification is seen."
            for code in SCALES["calcification"].codes
        },
    },
)

_DETAILED = PromptTemplate(
    name="detailed",
    version=1,
    opening="The nodule is {sphericity} in shape, {texture}, with {margin}.",
    remarks={
        "spiculation": {c: f"{w or 'no'} spiculation is seen.".capitalize() for c, w in _DEGREE.items()},
        "lobulation": {c: f"{w or 'no'} lobulation is seen.".capitalize() for c, w in _DEGREE.items()},
        "calcification": {
            code: f"{'no' if code == CALCIFICATION_ABSENT else label} calcification is seen.".capitalize()
            for code, label in SCALES["calcification"].labels.items()
        },
        "malignancy": {
            1: "Malignancy is highly unlikely.",
            2: "Malignancy is moderately unlikely.",
            3: "Malignancy is indeterminate.",
            4: "Malignancy is moderately suspected.",
            5: "Malignancy is highly suspected.",
        },
    },
)

TEMPLATES: dict[str, PromptTemplate] = {template.name: template for template in (_REFERENCE, _DETAILED)}
"""Every template by name."""


def get_template(name: str) -> PromptTemplate:
    """The template called ``name``.

    Raises:
        InputError: if there is none.
    """
    if name not in TEMPLATES:
        raise InputError(f"prompt template: there is no {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def findings_to_prompt(findings: Findings, template: str = "reference") -> str:
    """Word one nodule's findings.

    Args:
        findings: the nodule's ratings.
        template: a name in :data:`TEMPLATES`.

    Returns:
        One to five short sentences, within the 77 tokens of Stable Diffusion's text encoder.

    Raises:
        InputError: if there is no such template.

    Example:
        >>> findings_to_prompt(Findings(sphericity=5, margin=5, texture=5, spiculation=1))
        'The nodule is round in shape, solid internally, with well-defined margins.'
    """
    return get_template(template).render(findings)


def prompt_to_ratings(prompt: str, template: str = "reference") -> dict[str, int]:
    """The ratings that a prompt of ``template`` states beyond doubt.

    What the wording leaves open is left out: the reference template tells that there is calcification, not of which
    kind. A rating whose sentence is absent is taken as the code that has no sentence (no spiculation), where the
    template has such a code.

    Raises:
        InputError: if the prompt is not one the template can have written.
    """
    chosen = get_template(template)
    for shape, texture, margin in product(_SHAPE, _TEXTURE, _MARGIN):
        opening = chosen.opening.format(sphericity=_SHAPE[shape], texture=_TEXTURE[texture], margin=_MARGIN[margin])
        if prompt.startswith(opening):
            ratings = {"sphericity": shape, "margin": margin, "texture": texture}
            return ratings | _read_remarks(prompt, prompt[len(opening) :].strip(), chosen)
    raise InputError(f"prompt: not in the wording of the {template!r} template: {prompt!r}")


def _read_remarks(prompt: str, rest: str, template: PromptTemplate) -> dict[str, int]:
    ratings: dict[str, int] = {}
    for name, phrases in template.remarks.items():
        # Longest first: one sentence may begin another.
        stated = max((phrase for phrase in phrases.values() if phrase and rest.startswith(phrase)), key=len, default="")
        rest = rest[len(stated) :].strip()
        codes = [code for code, phrase in phrases.items() if phrase == stated]
        if len(codes) == 1:
            ratings[name] = codes[0]
    if rest:
        raise InputError(f"prompt: {rest!r} is not in the wording of the {template.name!r} template: {prompt!r}")
    return ratings
