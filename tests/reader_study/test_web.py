from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from study_material import SMALL, Material, form, links_of

pytest.importorskip("fastapi", reason="the web application needs the extra reader-study")
from fastapi.testclient import TestClient

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.design import DesignedStudy, write_study
from nodule_plugin.reader_study.questions import ITEMS, read_answer
from nodule_plugin.reader_study.serve import refuse_key, serve
from nodule_plugin.reader_study.study import load_study, replace_link
from nodule_plugin.reader_study.texts import SCALE_LABELS, TEXTS, choose_language
from nodule_plugin.reader_study.web import HEADERS, Pages, create_app

STEPS = SMALL.cases * 3 + SMALL.repeats + SMALL.practice


@pytest.fixture
def client(designed: DesignedStudy) -> Iterator[TestClient]:
    with TestClient(create_app(load_study(designed.study)), follow_redirects=False) as client:
        yield client


def stored(designed: DesignedStudy) -> AnswerStore:
    study = load_study(designed.study)
    return AnswerStore(study.answers_file, study.content["id"], create=False)


def hidden(page: str) -> dict[str, str]:
    """The form's hidden fields."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))


def test_a_whole_study_image_by_image(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    assert f"0 of {STEPS} images answered" in client.get(link).text
    for number in range(1, STEPS + 1):
        page = client.get(f"{link}/{number}")
        image = client.get(f"{link}/{number}/image")
        assert image.headers["content-type"] == "image/png"
        answer = client.post(f"{link}/{number}", data=form(1 + number % 5) | hidden(page.text))
        assert answer.status_code == 303
        assert answer.headers["location"] == (f"{link}/{number + 1}" if number < STEPS else link)
    assert "All images are answered" in client.get(link).text
    rows = stored(designed).rows()
    assert [row.answer["realism"] for row in rows] == [1 + number % 5 for number in range(1, STEPS + 1)]
    assert [row.image for row in rows] == [step.image for step in load_study(designed.study).sequences["R1"]]


@pytest.mark.parametrize("path", ["", "/1", "/1/image", "/none"])
def test_strangers_get_nothing(client: TestClient, designed: DesignedStudy, path: str) -> None:
    answers = [client.get(f"/r/{secret}{path}") for secret in ("x", links_of(designed)[0][3:-1], "%00")]
    answers.append(client.get(f"/{designed.key.name}"))
    answers.append(client.get(f"/static/../../{designed.key.name}"))
    assert {answer.status_code for answer in answers} == {404}
    assert SMALL.title not in answers[0].text
    assert client.post("/r/x/1", data=form()).status_code == 404


def test_nobody_sees_ahead(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    for path in (f"{link}/2", f"{link}/2/image", f"{link}/0", f"{link}/-1", f"{link}/{STEPS + 1}"):
        assert client.get(path).status_code == 404
    assert client.post(f"{link}/2", data=form()).status_code == 404
    assert stored(designed).rows() == []


def test_answers_of_one_reader_are_not_on_anothers_pages(client: TestClient, designed: DesignedStudy) -> None:
    first, second, _ = links_of(designed)
    client.post(f"{first}/1", data=form(5, comment="a secret remark"))
    assert 'value="5" checked' in client.get(f"{first}/1").text
    assert "a secret remark" in client.get(f"{first}/1").text
    for page in (client.get(second), client.get(f"{second}/1")):
        assert "checked" not in page.text
        assert "a secret remark" not in page.text


def test_pages_hold_nothing_that_the_key_knows(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    client.post(f"{link}/1", data=form())
    pages = [client.get(path).text for path in (link, f"{link}/1", f"{link}/2")]
    key = json.loads(designed.key.read_text())
    telling = [key["nonce"], *key["arms"][1:], *key["images"]]
    assert not [word for page in pages for word in telling if word in page]


def test_an_incomplete_form_is_not_saved_and_says_what_is_missing(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    answer = client.post(f"{link}/1", data=form(4) | {"margin": "6", "origin": "", "comment": "x" * 2001})
    assert answer.status_code == 422
    for field in ("margin", "origin", "comment"):
        assert f'href="#q-{field}"' in answer.text
    assert 'name="realism" value="4" checked' in answer.text
    assert stored(designed).rows() == []


def test_cannot_judge_is_an_answer(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    assert client.post(f"{link}/1", data=form() | {"texture": "none"}).status_code == 303
    assert stored(designed).rows()[0].answer["texture"] is None
    assert 'name="texture" value="none" checked' in client.get(f"{link}/1").text


def test_two_tabs_conflict_and_only_a_second_save_changes(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    tabs = [hidden(client.get(f"{link}/1").text) for _ in range(2)]
    assert client.post(f"{link}/1", data=form(3) | tabs[0]).status_code == 303
    conflict = client.post(f"{link}/1", data=form(5) | tabs[1])
    assert conflict.status_code == 409
    assert "Realism: 3 moderately realistic" in conflict.text
    assert 'name="realism" value="5" checked' in conflict.text
    assert [row.answer["realism"] for row in stored(designed).rows()] == [3]
    again = client.post(f"{link}/1", data=form(5) | hidden(conflict.text))
    assert again.headers["location"] == f"{link}/2?changed=1"
    told = client.get(again.headers["location"]).text
    assert "Practice image 1: answer changed (Realism: 3 moderately realistic → 5 fully realistic)" in told
    assert [(row.revision, row.answer["realism"]) for row in stored(designed).rows()] == [(1, 3), (2, 5)]


def test_a_script_gets_the_next_address(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    data = form() | {"submission": "once", "visible_ms": "1234"}
    for _ in range(2):
        answer = client.post(f"{link}/1", data=data, headers={"accept": "application/json"})
        assert answer.json() == {"next": f"{link}/2"}
    (row,) = stored(designed).rows()
    assert row.visible_ms == 1234


@pytest.mark.parametrize("content", ["x=" + "y" * 70000, None])
def test_oversized_forms_are_refused(client: TestClient, designed: DesignedStudy, content: str | None) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    body = iter([b"x=1"]) if content is None else content.encode()  # an iterator is sent without a length
    assert client.post(f"{links_of(designed)[0]}/1", content=body, headers=headers).status_code == 413


def test_what_a_reader_types_is_shown_as_text(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    client.post(f"{link}/1", data=form(comment="</textarea><script>alert(1)</script>"))
    assert "<script>alert" not in client.get(f"{link}/1").text


def test_pages_load_nothing_from_elsewhere_and_say_so(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    page = client.get(f"{link}/1")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"https?://", page.text)
    assert " style=" not in page.text
    assert "onclick" not in page.text
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        assert client.get(address).status_code == 200


def test_japanese_and_back(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    assert '<html lang="ja">' in client.get(f"{link}/1", headers={"accept-language": "ja-JP,ja;q=0.9,en;q=0.8"}).text
    page = client.get(f"{link}/1?language=ja").text
    assert "スピキュラ" in page
    assert "スピキュラ" in client.get(f"{link}/1").text  # remembered
    assert "Spiculation" in client.get(f"{link}/1?language=en").text


def test_both_languages_say_everything() -> None:
    assert set(TEXTS["en"]) == set(TEXTS["ja"])
    assert {item: set(labels) for item, labels in SCALE_LABELS["en"].items()} == {
        item: set(labels) for item, labels in SCALE_LABELS["ja"].items()
    }
    for name, text in TEXTS["en"].items():
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", TEXTS["ja"][name])), name


@pytest.mark.parametrize(
    ("wishes", "language"),
    [((None, None), "en"), (("fr", "ja-JP,en"), "ja"), (("xx",), "en"), (("EN-gb",), "en")],
)
def test_language_follows_wishes(wishes: tuple[str | None, ...], language: str) -> None:
    assert choose_language(*wishes) == language


def test_a_new_link_ends_the_old_one(client: TestClient, designed: DesignedStudy) -> None:
    first, second, _ = links_of(designed)
    new = replace_link(load_study(designed.study), "R1")
    assert client.get(first).status_code == 404
    assert client.get(f"/r/{new}").status_code == 200
    assert client.get(second).status_code == 200
    assert new not in (designed.study / "links.json").read_text()
    with pytest.raises(InputError, match="there is no 'R9'"):
        replace_link(load_study(designed.study), "R9")


def test_under_a_proxys_path(designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    with TestClient(create_app(load_study(designed.study), "/study/"), follow_redirects=False) as client:
        assert f'href="/study{link}/1"' in client.get(link).text
        assert client.post(f"{link}/1", data=form()).headers["location"] == f"/study{link}/2"


def test_a_full_disk_is_told_and_nothing_is_half_saved(
    client: TestClient, designed: DesignedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    link = links_of(designed)[0]
    with monkeypatch.context() as patch:
        patch.setattr(AnswerStore, "_save", fail)
        answer = client.post(f"{link}/1", data=form())
    assert answer.status_code == 503
    assert "Not saved" in answer.text
    assert stored(designed).rows() == []
    assert client.post(f"{link}/1", data=form()).status_code == 303


def test_a_server_with_a_key_in_its_folder_does_not_start(designed: DesignedStudy) -> None:
    refuse_key(designed.study)
    (designed.study / "images" / "notes.json").write_text(designed.key.read_text())
    with pytest.raises(InputError, match=r"notes\.json is a key"):
        serve(designed.study)


def test_reading_a_form() -> None:
    answer, missing = read_answer(form(2) | {"margin": "none", "unknown": "x", "comment": " a\r\nb "})
    assert not missing
    assert answer == dict.fromkeys(ITEMS, 3) | {
        **{"realism": 2, "margin": None, "origin": "real", "confidence": 2, "comment": "a\nb"}
    }


def test_every_answer_carries_the_policy(designed: DesignedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pages, "overview", lambda *arguments: 1 / 0)
    link = links_of(designed)[0]
    with TestClient(create_app(load_study(designed.study)), raise_server_exceptions=False) as client:
        answers = {
            200: client.get("/static/study.css"),
            303: client.post(f"{link}/1", data=form(), follow_redirects=False),
            404: client.get("/r/x"),
            405: client.put(f"{link}/1"),
            413: client.post(f"{link}/1", content=b"x" * 70000),
            422: client.post(f"{link}/1", data={}),
            500: client.get(link),
        }
    assert {status: answer.status_code for status, answer in answers.items()} == {status: status for status in answers}
    assert {tuple(answer.headers.get(name) for name in HEADERS) for answer in answers.values()} == {
        tuple(HEADERS.values())
    }


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage",
    [cut, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_text("[1]")],
    ids=["cut", "gone", "empty", "other"],
)
@pytest.mark.parametrize("name", ["links.json", "image"])
def test_a_damaged_file_is_told_as_such(client: TestClient, designed: DesignedStudy, name: str, damage: Any) -> None:
    link = links_of(designed)[0]
    study = load_study(designed.study)
    damage(study.image_file(study.sequences["R1"][0].image) if name == "image" else study.folder / name)
    answer = client.get(f"{link}/1/image")
    assert answer.status_code == 503
    assert "Please tell the study&#39;s team" in answer.text
    assert str(designed.study) not in answer.text
    assert client.get(f"{link}/1").status_code == (200 if name == "image" else 503)


def test_pages_show_while_the_database_is_locked(client: TestClient, designed: DesignedStudy) -> None:
    link = links_of(designed)[0]
    with closing(sqlite3.connect(designed.study / "answers.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert client.get(link).status_code == 200
        assert client.get(f"{link}/1").status_code == 200
        assert client.get(f"{link}/1/image").status_code == 200
    client.post(f"{link}/1", data=form())
    assert stored(designed).rows()[0].shown_at is not None


@pytest.mark.parametrize("path", ["/", "/1/", "/1/image/"])
def test_no_redirect_takes_the_hosts_name_from_the_request(
    client: TestClient, designed: DesignedStudy, path: str
) -> None:
    answer = client.get(f"{links_of(designed)[0]}{path}", headers={"host": "evil.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers
    posted = client.post(f"{links_of(designed)[0]}/1", data=form(), headers={"host": "evil.example"})
    assert posted.headers["location"].startswith("/r/")


def test_a_rehearsal_says_so_on_every_page(material: Material, tmp_path: Path) -> None:
    made = write_study(tmp_path / "study", material.datalist, material.generated, SMALL, seed=1)
    link = links_of(made)[0]
    with TestClient(create_app(load_study(made.study))) as client:
        for path, language in ((link, "en"), (f"{link}/1", "en"), (f"{link}/1", "ja")):
            assert TEXTS[language]["rehearsal"] in client.get(path, params={"language": language}).text


def test_a_server_does_not_start_an_empty_record_in_place_of_a_lost_one(designed: DesignedStudy) -> None:
    (designed.study / "answers.sqlite3").unlink()
    with pytest.raises(InputError, match=r"answers: there is no .*answers\.sqlite3"):
        create_app(load_study(designed.study))
