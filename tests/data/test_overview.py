from __future__ import annotations

from typing import Any

import pytest
from datalist_content import make_content, make_item

from nodule_plugin.data.datalist import summarise
from nodule_plugin.data.dataset_warnings import dataset_warnings
from nodule_plugin.data.overview import FEW, Distribution, count_datalist
from nodule_plugin.errors import InputError
from nodule_plugin.findings import SCALES


def _rating(content: dict[str, Any], name: str) -> Distribution:
    return next(rating for rating in count_datalist(content).ratings if rating.name == name)


def _said(content: dict[str, Any]) -> str:
    return "\n".join(dataset_warnings(content, count_datalist(content)))


def _many(split: str, count: int, first: int = 0, **changes: Any) -> list[dict[str, Any]]:
    return [make_item(number, split, **changes) for number in range(first, first + count)]


def test_ratings_are_counted_by_part_with_both_wordings() -> None:
    content = make_content(*_many("training", 2), *_many("training", 1, 2, margin=2), *_many("test", 1, margin=2))
    margin = _rating(content, "margin")
    assert [row.label for row in margin.rows] == list("12345")
    second = margin.rows[1]
    assert second.counts == {"training": 1, "validation": 0, "test": 1}
    assert (second.detail, second.words) == ("near poorly defined", "mostly poorly defined margins")
    assert margin.totals == {"training": 3, "validation": 0, "test": 1}


def test_every_finding_has_its_histogram_whether_or_not_prompts_mention_it() -> None:
    overview = count_datalist(make_content(*_many("training", 1)))
    assert [rating.name for rating in overview.ratings] == list(SCALES)
    lobulation = _rating(make_content(*_many("training", 1)), "lobulation")
    assert (lobulation.rows[0].words, lobulation.note) == (None, "Prompts of this template do not mention it.")
    assert (lobulation.rows[-1].detail, lobulation.rows[-1].counts["training"]) == ("not rated", 1)


def test_counts_by_split() -> None:
    training = [*_many("training", 2), make_item(2, "training", padding=0.1), make_item(3, "training", margin=1)]
    overview = count_datalist(make_content(*training, *_many("test", 1)))
    rows = {row[0]: dict(zip(overview.split_headings[1:], row[1:])) for row in overview.split_rows}
    assert (rows["training"]["pairs"], rows["training"]["ROI beyond the image"], rows["training"]["examples"]) == (
        *("4", "1", "3"),
    )
    assert (rows["training"]["different prompts"], rows["training"]["prompts of one example"]) == ("2", "1")
    assert (rows["all"]["pairs"], rows["all"]["patients"], rows["all"]["different prompts"]) == ("5", "4", "2")


def test_readings_of_one_nodule_are_one_nodule() -> None:
    readings = [make_item(0, "training", id=f"training-N01-R{reader}") for reader in (1, 2)]
    counted = {
        rule: count_datalist(make_content(*readings, consensus=rule)).split_rows[0][4] for rule in ("each", "median")
    }
    assert counted == {"each": "1", "median": "2"}


def test_pairs_beyond_their_image_are_no_examples() -> None:
    content = make_content(*_many("training", 1), make_item(1, "training", padding=0.2, margin=1, diameter_mm=25.0))
    overview = count_datalist(content)
    assert _rating(content, "margin").rows[0].counts["training"] == 0
    assert len(overview.prompts) == 1
    by_label = {row.label: row.counts for row in overview.diameters.rows}
    assert by_label["20 to 30 mm"] == {"training": 0, "validation": 0, "test": 0, "left out": 1}
    assert "ROIs that reach beyond their image: 1 (median diameter 25.0 mm, the others' 5.0 mm)" in _said(content)


@pytest.mark.parametrize(
    ("diameter", "label"), [(3.9, "below 4 mm"), (4.0, "4 to 6 mm"), (8.0, "8 to 10 mm"), (30.0, "30 or more mm")]
)
def test_diameters_fall_between_their_bounds(diameter: float, label: str) -> None:
    overview = count_datalist(make_content(make_item(0, "training", diameter_mm=diameter)))
    assert {row.label: row.counts["training"] for row in overview.diameters.rows}[label] == 1
    assert sum(row.counts["training"] for row in overview.diameters.rows) == 1
    assert "The ROIs are 20 pixels wide" in overview.diameters.note


def test_readers_and_groups_of_more_than_four() -> None:
    overview = count_datalist(make_content(make_item(0, "training", readers=1), make_item(1, "training", readers=6)))
    assert [row.label for row in overview.readers.rows] == ["1 reader", "6 readers"]
    assert overview.readers.note == "More than four: nodules too close to be told apart."


def test_prompts_come_by_their_training_examples() -> None:
    content = make_content(
        *_many("training", 3), *_many("training", 1, 3, margin=1), *_many("validation", 2, margin=2), *_many("test", 1)
    )
    overview = count_datalist(content)
    assert [tuple(prompt.counts.values()) for prompt in overview.prompts] == [(3, 0, 1), (1, 0, 0), (0, 2, 0)]
    assert [prompt.prompt for prompt in overview.unseen] == [content["validation"][0]["prompt"]]


def test_findings_together() -> None:
    overview = count_datalist(
        make_content(*_many("training", 2), make_item(2, "training", sphericity=1, calcification=3))
    )
    cross = next(one for one in overview.together if (one.down, one.across) == ("sphericity", "calcification"))
    assert (cross.rows, cross.columns) == (list("12345"), ["1–5", "6"])  # prompts tell no kinds apart
    assert cross.counts[0] == [1, 0]
    assert cross.counts[4] == [0, 2]
    assert len(overview.together) == 10


def test_skipped_things_are_grouped_by_reasons_alike_but_for_numbers() -> None:
    gaps = [{"what": f"N{z}", "reason": f"its centre slice at z = -{z}.5 mm is missing"} for z in (1, 2)]
    small = [{"what": str(n), "reason": "diameter below 5 mm"} for n in range(3)]
    groups = count_datalist(make_content(*_many("training", 1), skipped=[*gaps, *small])).skipped
    assert [(group.reason, len(group.members), group.alike) for group in groups] == [
        ("diameter below 5 mm", 3, True),
        ("its centre slice at z = … mm is missing", 2, False),
    ]


def test_words_without_and_with_few_examples_are_named() -> None:
    said = _said(make_content(*_many("training", FEW), *_many("training", FEW - 1, FEW, spiculation=5, texture=1)))
    none, few = said.splitlines()[2:4]
    assert none.startswith(
        "No training example, so nothing to learn these words from: sphericity 1 (“linear”), 2 (“nearly"
    )
    assert "spiculation 2 (“slight spiculation is seen”)" in none
    assert "calcification 1–5 (“calcification is seen”)" in none
    assert few == (
        "Fewer than 10 training examples: texture 1 (“ground-glass internally”) 9; "
        "spiculation 5 (“marked spiculation is seen”) 9."
    )


def test_nothing_is_said_to_be_missing_where_nothing_is() -> None:
    ratings = ("sphericity", "margin", "texture", "spiculation")
    items = [
        make_item(FEW * code + number, "training", **dict.fromkeys(ratings, code), calcification=5 + number % 2)
        for code in range(1, 6)
        for number in range(FEW)
    ]
    said = _said(make_content(*items, *_many("test", 1, spiculation=5)))
    assert "No training example" not in said
    assert "Fewer than" not in said
    assert "without a training example" not in said


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (_many("test", 2), "2 of 2 test examples (100 %) have a prompt without a training example (1 prompt)."),
        (_many("test", 1), "1 of 1 test example (100 %) has a prompt without a training example (1 prompt)."),
        ([], "The test split has no example."),
        (
            _many("test", 1, patient_id="P-training-0"),
            "P-training-0 is in more than one split: no test on such a division",
        ),
        (
            _many("test", 1, patient_id="p-TRAINING-0"),
            "P-training-0 and p-TRAINING-0 count as different patients: is it one, spelt in two ways?",
        ),
        ([], "1 training example with 1 different prompt, of 1,250 that the template 'reference' can write."),
        ([], "Prompts of a single example: 1, with fewer than 10: 1."),
        ([], "Prompts do not mention lobulation, malignancy, subtlety and internal structure:"),
        ([], "Prompts word several kinds of calcification alike;"),
    ],
)
def test_dataset_warnings(items: list[dict[str, Any]], sentence: str) -> None:
    assert sentence in _said(make_content(make_item(0, "training", margin=1), *items))


def test_the_detailed_template_leaves_little_unsaid() -> None:
    said = _said(make_content(make_item(0, "training", template="detailed"), template="detailed"))
    assert "Prompts do not mention subtlety and internal structure:" in said
    assert "several kinds" not in said
    assert "of 93,750 that the template 'detailed' can write" in said


def test_a_template_that_has_changed() -> None:
    content = make_content(*_many("training", 1)) | {"template": {"name": "reference", "version": 2}}
    with pytest.raises(InputError, match=r"version 2 of 'reference', this is version 1; run prepare again"):
        count_datalist(content)


def test_files_in_doubt_come_first() -> None:
    doubts = [{"what": f"P{number}", "reason": "one value throughout"} for number in range(7)]
    content = make_content(*_many("training", 1)) | {"doubts": doubts}
    assert _said(content).startswith("P0, P1, P2, P3, P4 and 2 more may be read wrongly: one value throughout.\n")
    assert "  in doubt: 7 x one value throughout\n" in summarise(content | {"name": "n", "skipped": []})
