from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nodule_plugin.data.requests import dose_response, generation_requests
from nodule_plugin.errors import InputError

ROUND = {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 6}
ROUND_PROMPT = "The nodule is round in shape, solid internally, with well-defined margins."


def datalist(folder: Path, ids: list[str]) -> str:
    (folder / "a.nii.gz").touch()
    item = {"image": "a.nii.gz", "slice_index": 0, "centre": [9, 9], "spacing": [1, 1], "diameter_mm": 8, "padding": 0}
    items = [
        {**item, "id": name, "roi_mm": 16 + index, "prompt": f"nodule {index}", "findings": ROUND}
        for index, name in enumerate(ids)
    ]
    file = folder / "datalist.json"
    file.write_text(json.dumps({"dataset_dir": str(folder), "training": [], "validation": [], "test": items}))
    return str(file)


def test_prompts_times_scales_times_seeds() -> None:
    requests = generation_requests(prompts=["one", "two"], guidance_scales=[1, 5.5], seeds=[0, 7], roi_mm=30)
    assert len(requests) == len({request["id"] for request in requests}) == 8
    assert requests[0] == {
        "id": "prompt000_g1_s0",
        "prompt": "one",
        "findings": None,
        "guidance_scale": 1.0,
        "seed": 0,
        "roi_mm": 30.0,
        "source_id": None,
    }
    assert [request["guidance_scale"] for request in requests] == [1.0] * 4 + [5.5] * 4
    assert [request["seed"] for request in requests] == [0, 0, 7, 7] * 2
    assert requests[-1]["id"] == "prompt001_g5.5_s7"


@pytest.mark.parametrize(
    "given",
    ["one\n\n two \n", ["one", "two"], ("one", "two"), "prompts.txt", "prompts.json", "prompts.csv", "PROMPTS.TXT"],
)
def test_ways_to_give_prompts(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "prompts.json").write_text('["one", "two"]')
    (tmp_path / "prompts.csv").write_text('id,prompt\r\n1,one\r\n2,"two"\r\n', encoding="utf-8-sig")
    (tmp_path / "PROMPTS.TXT").write_text("one\r\ntwo", encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    assert [request["prompt"] for request in generation_requests(prompts=given)] == ["one", "two"]


def test_prompts_are_texts_to_the_letter_and_a_list_names_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Nodule #1, round; 50% solid\n$(rm -rf /)\n@x\n")
    listed = [str(tmp_path / "a.txt"), "two\twords\nand a line"]
    read = [request["prompt"] for request in generation_requests(prompts=str(tmp_path / "a.txt"))]
    assert read == ["Nodule #1, round; 50% solid", "$(rm -rf /)", "@x"]
    assert [request["prompt"] for request in generation_requests(prompts=listed)] == [
        listed[0],
        "two words and a line",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt;id\none;1\n", r"has no column 'prompt' between commas, only \['prompt;id'\]"),
        ("a.csv", "", "has no column 'prompt'"),
        ("a.csv", 'id,prompt\n1,"one\n', "cannot be read as CSV"),
        ("a.csv", "id,prompt\n1\n", r"prompts\[0\]: a text that is not empty is needed, not None"),
        ("a.json", '{"prompts": 1}', "a text, a list of texts or a file"),
        ("a.txt", b"\xff\xfeo\0n\0e\0", "cannot be read as UTF-8 text"),
        ("a.txt", "one\x1b[2J", r"prompts\[0\]: the character '\\x1b' in 'one"),
    ],
)
def test_files_of_prompts_that_cannot_be_used(name: str, content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        generation_requests(prompts=str(tmp_path / name))


@pytest.mark.parametrize("bad", ["a\0b", "a\x07", "a\x85b", "a\x9b", "a\udcff", "x" * 2001])
def test_prompts_that_no_file_can_hold_are_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^prompts\[0\]: "):
        generation_requests(prompts=[bad])
    path = Path(datalist(tmp_path, ["a"]))
    content = json.loads(path.read_text())
    content["test"][0]["prompt"] = bad
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"datalist\.json: prompt of 'a': "):
        generation_requests(datalist=str(path))


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_findings_become_prompts(as_file: bool, count: int, tmp_path: Path) -> None:
    given: Any = ROUND if count == 1 else [ROUND, {**ROUND, "sphericity": 3}]
    if as_file:
        (tmp_path / "findings.json").write_text(json.dumps(given))
        given = str(tmp_path / "findings.json")
    requests = generation_requests(findings=given, guidance_scales=5)
    assert len(requests) == count
    assert requests[0]["prompt"] == ROUND_PROMPT
    assert requests[0]["findings"] == ROUND
    assert requests[0]["id"] == "findings000_g5_s0"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (5, [5]),
        (2.5, [2.5]),
        ("5", [5]),
        ("1,5, 10", [1, 5, 10]),
        ("[1 5]", [1, 5]),
        ((1, 5), [1, 5]),
        (["1", 0], [1, 0]),
    ],
)
def test_ways_to_give_scales(given: Any, expected: list[float]) -> None:
    requests = generation_requests(prompts="one", guidance_scales=given)
    assert [request["guidance_scale"] for request in requests] == expected


def test_datalist_items_keep_their_seed_at_every_scale(tmp_path: Path) -> None:
    path = datalist(tmp_path, ["LIDC 0001/1", "LIDC-0001-1", "c"])
    ids = [request["id"] for request in generation_requests(datalist=path, seeds=[100, 101])]
    assert len(set(ids)) == 6, "the first with seed 101 and the second with seed 100 + 1 are two images"
    requests = generation_requests(datalist=path, guidance_scales="5,10", seeds=100)
    assert [request["seed"] for request in requests] == [100, 101, 102] * 2
    assert [request["source_id"] for request in requests[:3]] == ["LIDC 0001/1", "LIDC-0001-1", "c"]
    assert [request["roi_mm"] for request in requests[:3]] == [16, 17, 18]
    assert requests[0]["findings"] == ROUND
    assert len({request["id"] for request in requests}) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", request["id"]) for request in requests)
    assert generation_requests(datalist=path, limit=1, guidance_scales="5", seeds=100) == requests[:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of prompts, findings and datalist, not none"),
        ({"prompts": "a", "findings": ROUND}, "not prompts and findings"),
        ({"prompts": "a", "guidance_scales": "5,-1"}, "guidance_scales: .* 0 or above, not -1"),
        ({"prompts": "a", "guidance_scales": "nan"}, "guidance_scales: a finite number is needed, not nan"),
        ({"prompts": "a", "guidance_scales": "five"}, "guidance_scales: 'five' is not a number"),
        ({"prompts": "a", "guidance_scales": True}, "guidance_scales: True is not a number"),
        ({"prompts": "a", "guidance_scales": "5,5.0"}, "guidance_scales: 5.0 is given twice"),
        ({"prompts": "a", "guidance_scales": []}, "guidance_scales: at least one"),
        ({"prompts": "a", "seeds": 1.5}, "seeds: a seed is a whole number of 0 or above, not 1.5"),
        ({"prompts": "a", "seeds": 2**64}, r"seeds: a number below 2\*\*63 is needed"),
        ({"prompts": "a", "seeds": "1_0"}, "seeds: '1_0' is not a number"),
        ({"prompts": "a", "seeds": -1}, "seeds: .* not -1"),
        ({"prompts": "a", "seeds": "inf"}, "seeds: a finite number is needed, not inf"),
        ({"prompts": "a", "roi_mm": 0}, "roi_mm: a number above 0"),
        ({"prompts": "a", "roi_mm": 20000}, "roi_mm: a number above 0, up to 1000 mm, is needed, not 20000"),
        ({"prompts": ["a", " "]}, r"prompts\[1\]: a text that is not empty"),
        ({"prompts": [3]}, r"prompts\[0\]: a text that is not empty is needed, not 3"),
        ({"prompts": "  \n "}, "prompts: a text, a list"),
        ({"prompts": "missing.txt"}, "prompts: missing.txt cannot be read"),
        ({"findings": {**ROUND, "margin": 7}}, r"findings\[0\]: margin: .*1 to 5.*not 7"),
        ({"findings": [ROUND, {**ROUND, "margin": 7}]}, r"findings\[1\]: margin"),
        ({"findings": [ROUND, "round"]}, r"findings\[1\]: a dictionary of ratings"),
        ({"findings": [{"margin": 1}]}, r"findings\[0\]: .*'sphericity' is missing"),
        ({"findings": "missing.json"}, "^findings: missing.json: cannot be read"),
        ({"findings": {}}, r"findings\[0\]: .*'sphericity' is missing"),
        ({"findings": []}, r"findings: a dictionary of ratings or a list of them is needed, not \[\]"),
        ({"prompts": "a", "findings": {}}, "not prompts and findings"),
        ({"findings": ROUND, "template": "none"}, "prompt template: there is no 'none'"),
        ({"datalist": "missing.json"}, "missing.json"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generation_requests(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "findings.json").write_text("{")
    with pytest.raises(InputError, match=r"findings.json: not JSON"):
        generation_requests(findings=tmp_path / "findings.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "no items in its split 'training'"),
        ({"split": "x"}, "no split 'x'"),
        ({"limit": 0}, "limit"),
    ],
)
def test_bad_use_of_the_datalist_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        generation_requests(datalist=datalist(tmp_path, ["a"]), **arguments)


def test_splits_of_a_data_list_are_joined_and_unique_prompts_chosen(tmp_path: Path) -> None:
    file = Path(datalist(tmp_path, ["a", "b", "c"]))
    content = json.loads(file.read_text())
    content["training"] = [{**item, "id": f"{item['id']}2", "prompt": "shared"} for item in content["test"][:2]]
    content["training"].append({**content["test"][2], "id": "c2", "prompt": "own"})
    file.write_text(json.dumps(content))
    joined = generation_requests(datalist=str(file), split=["training", "test"])
    assert [request["source_id"] for request in joined] == ["a2", "b2", "c2", "a", "b", "c"]
    assert [request["seed"] for request in joined] == list(range(6))
    attack = generation_requests(datalist=str(file), split="training", unique_prompts="true", seeds=[0, 1])
    assert [(request["source_id"], request["seed"]) for request in attack] == [("c2", 0), ("c2", 1)]
    content["training"] = content["training"][:2]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no items whose prompt is theirs alone"):
        generation_requests(datalist=str(file), split="training", unique_prompts=True)


def test_one_rating_moves_and_all_else_stays() -> None:
    findings = dose_response(ROUND)
    assert findings[0] == ROUND
    moved = [{name for name in ROUND if step[name] != ROUND[name]} for step in findings[1:]]
    assert all(len(names) == 1 for names in moved)
    assert [len([names for names in moved if names == {rating}]) for rating in ROUND] == [4, 4, 4, 4, 1]
    requests = generation_requests(findings=findings, seeds=[0, 1])
    assert len(requests) == 36
    assert len({request["prompt"] for request in requests}) == 18
    detailed = dose_response({**ROUND, "lobulation": 1, "malignancy": 3}, "detailed", ["malignancy"])
    assert [step["malignancy"] for step in detailed] == [3, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("rating", "message"), [("lobulation", "does not word 'lobulation'"), ("shine", "no rating is called 'shine'")]
)
def test_ratings_that_cannot_move_a_picture_are_refused(rating: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dose_response({**ROUND, "lobulation": 1}, ratings=[rating])
