from __future__ import annotations

import re
from itertools import product

import pytest

from nodule_plugin import Findings, InputError, findings_to_prompt
from nodule_plugin.diffusion.tokenizer import clip_tokenizer
from nodule_plugin.lidc.consensus import form_consensus
from nodule_plugin.lidc.database import database_nodules
from nodule_plugin.prompts import TEMPLATES, prompt_to_ratings

NAMES = ("sphericity", "margin", "texture", "spiculation", "calcification")
ALL = [Findings(*codes) for codes in product(range(1, 6), range(1, 6), range(1, 6), range(1, 6), range(1, 7))]


@pytest.mark.parametrize(
    ("findings", "sentence"),
    [
        ((5, 5, 5, 1), "The nodule is round in shape, solid internally, with well-defined margins."),
        ((4, 4, 5, 1), "The nodule is nearly round in shape, solid internally, with mostly well-defined margins."),
        (
            (3, 3, 5, 5),
            "The nodule is oval in shape, solid internally, with relatively well-defined margins. "
            "marked spiculation is seen.",
        ),
    ],
)
def test_the_papers_printed_prompts(findings: tuple[int, int, int, int], sentence: str) -> None:
    assert findings_to_prompt(Findings(*findings)) == sentence


@pytest.mark.parametrize(
    ("code", "sentences"),
    [
        (1, "linear in shape, ground-glass internally, with poorly defined margins."),
        (
            2,
            "nearly linear in shape, mostly ground-glass internally, with mostly poorly defined margins. "
            "slight spiculation is seen.",
        ),
        (
            3,
            "oval in shape, part-solid internally, with relatively well-defined margins. moderate spiculation is seen.",
        ),
        (
            4,
            "nearly round in shape, mostly solid internally, with mostly well-defined margins. "
            "nearly marked spiculation is seen.",
        ),
        (5, "round in shape, solid internally, with well-defined margins. marked spiculation is seen."),
    ],
)
def test_version_1_of_the_reference_words_each_code_so(code: int, sentences: str) -> None:
    """Data lists and the shipped weights know these words: others need another version."""
    assert TEMPLATES["reference"].version == 1
    assert findings_to_prompt(Findings(*[code] * 4)) == f"The nodule is {sentences}"


def test_a_template_knows_how_much_it_can_say() -> None:
    template = TEMPLATES["reference"]
    assert template.prompts == len({template.render(findings) for findings in ALL}) == 1250
    assert list(template.wording) == ["sphericity", "texture", "margin", "spiculation", "calcification"]


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_every_combination_is_made_of_whole_sentences(template: str) -> None:
    sentence = re.compile(r"([A-Za-z][A-Za-z, -]*[a-z]\.)( [A-Za-z][A-Za-z, -]*[a-z]\.)*")
    opening = re.compile(r"The nodule is [a-z ]+ in shape, [a-z -]+ internally, with [a-z -]+ margins\.")
    prompts = {findings_to_prompt(findings, template) for findings in ALL}
    for prompt in prompts:
        assert sentence.fullmatch(prompt), prompt
        assert opening.match(prompt), prompt
        assert "  " not in prompt


def test_calcification_is_told_as_present_or_not() -> None:
    present = {findings_to_prompt(Findings(5, 5, 5, 1, code)) for code in range(1, 6)}
    assert present == {findings_to_prompt(Findings(5, 5, 5, 1)) + " calcification is seen."}


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_what_a_prompt_states_is_read_back(template: str) -> None:
    for findings in ALL:
        stated = prompt_to_ratings(findings_to_prompt(findings, template), template)
        assert stated.items() <= findings.to_dict().items()
        lost = {"calcification"} if template == "reference" and findings.calcified else set()
        assert set(NAMES) - set(stated) == lost


def test_the_detailed_template_loses_nothing() -> None:
    for lobulation, malignancy in product(range(1, 6), range(1, 6)):
        findings = Findings(3, 2, 4, 1, 5, lobulation=lobulation, malignancy=malignancy)
        assert prompt_to_ratings(findings_to_prompt(findings, "detailed"), "detailed") == findings.to_dict()


@pytest.mark.parametrize("prompt", ["A nodule.", "", findings_to_prompt(ALL[0]) + " It is large."])
def test_foreign_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="wording"):
        prompt_to_ratings(prompt)


def test_unknown_templates_are_named() -> None:
    with pytest.raises(InputError, match=r"'short'.*reference"):
        findings_to_prompt(ALL[0], "short")


def test_prompts_of_the_whole_database_fit_the_text_encoder() -> None:
    tokenizer = clip_tokenizer()
    nodules = [form_consensus(cluster)[0].findings for _, cluster in database_nodules()]
    assert len(nodules) == 2651
    for template in TEMPLATES:
        prompts = {findings_to_prompt(findings, template) for findings in nodules}
        assert max(len(ids) for ids in tokenizer(sorted(prompts)).input_ids) <= 77


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_prompts_of_all_combinations_fit_the_text_encoder(template: str) -> None:
    prompts = {findings_to_prompt(findings, template) for findings in ALL}
    assert max(len(ids) for ids in clip_tokenizer()(sorted(prompts)).input_ids) <= 77
