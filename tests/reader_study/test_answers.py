from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.answers import AnswerStore, Outcome
from nodule_plugin.reader_study.questions import ITEMS

ANSWER = dict.fromkeys(ITEMS, 3) | {"origin": "real", "confidence": 2, "comment": ""}
OTHER = ANSWER | {"realism": None, "comment": "結節 'x'; DROP TABLE answers"}


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore(tmp_path / "answers.sqlite3", "study")


def test_an_answer_comes_back_as_it_was_given(store: AnswerStore) -> None:
    store.note_view("R1", "a")
    assert store.save("R1", "a", OTHER, "s1", visible_ms=1200) is Outcome.SAVED
    (row,) = AnswerStore(store.file, "study").rows()
    assert (row.reader, row.image, row.revision, row.answer, row.visible_ms) == ("R1", "a", 1, OTHER, 1200)
    assert row.shown_at is not None
    assert row.shown_at <= row.answered_at


def test_one_form_is_one_row_however_often_it_arrives(store: AnswerStore) -> None:
    outcomes = [store.save("R1", "a", ANSWER, "s1") for _ in range(3)]
    assert outcomes == [Outcome.SAVED, Outcome.REPEATED, Outcome.REPEATED]
    assert store.save("R1", "a", ANSWER, "s2") is Outcome.REPEATED  # the same answer in another form
    assert len(store.rows()) == 1


def test_a_change_is_a_further_revision_and_the_first_one_stays(store: AnswerStore) -> None:
    store.save("R1", "a", ANSWER, "s1")
    assert store.save("R1", "a", OTHER, "s2", on_revision=1) is Outcome.CHANGED
    assert [row.answer for row in store.of_reader("R1")["a"]] == [ANSWER, OTHER]


@pytest.mark.parametrize("on_revision", [0, 2])
def test_a_form_filled_in_on_another_revision_changes_nothing(store: AnswerStore, on_revision: int) -> None:
    store.save("R1", "a", ANSWER, "s1")
    assert store.save("R1", "a", OTHER, "s2", on_revision=on_revision) is Outcome.CONFLICT
    assert [row.answer for row in store.rows()] == [ANSWER]


def test_readers_do_not_meet(store: AnswerStore) -> None:
    store.save("R1", "a", ANSWER, "s")
    assert store.save("R2", "a", OTHER, "s") is Outcome.SAVED  # names of forms are a reader's own
    assert {image: rows[0].answer for image, rows in store.of_reader("R2").items()} == {"a": OTHER}


def test_many_at_once_lose_nothing(store: AnswerStore) -> None:
    jobs = [(f"R{reader}", f"i{image}") for image in range(15) for reader in range(4)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda job: store.save(*job, ANSWER, f"s{job[1]}"), jobs))
    assert set(outcomes) == {Outcome.SAVED}
    assert sorted((row.reader, row.image) for row in store.rows()) == sorted(jobs)
    assert store.verify() == len(jobs)


@pytest.mark.parametrize("statement", ["UPDATE answers SET answer = '{}'", "DELETE FROM answers"])
def test_the_database_refuses_changes(store: AnswerStore, statement: str) -> None:
    store.save("R1", "a", ANSWER, "s1")
    with sqlite3.connect(store.file) as connection, pytest.raises(sqlite3.IntegrityError, match="answers are added"):
        connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE answers SET reader = 'R9' WHERE number = 2", "DELETE FROM answers WHERE number = 2"],
)
def test_tampering_behind_the_triggers_is_found(store: AnswerStore, statement: str) -> None:
    for image in "abc":
        store.save("R1", image, ANSWER, image)
    assert store.verify() == 3
    with sqlite3.connect(store.file) as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("DROP TRIGGER no_delete")
        connection.execute(statement)
    with pytest.raises(InputError, match="row 2 was changed or removed"):
        store.verify()


def test_wrong_files_are_named(store: AnswerStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds the answers of the study study, not of other"):
        AnswerStore(store.file, "other")
    with pytest.raises(InputError, match="nobody has answered yet"):
        AnswerStore(tmp_path / "none.sqlite3", "study", create=False)
    broken = tmp_path / "broken.sqlite3"
    broken.write_text("no database at all, and long enough to be looked at" * 9)
    with pytest.raises(InputError, match="cannot be used"):
        AnswerStore(broken, "study")
