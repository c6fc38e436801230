from __future__ import annotations

import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from permissions import unprivileged

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study import answers
from nodule_plugin.reader_study.answers import _COLUMNS, AnswerStore, Outcome, _following, _link
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
    assert store.verify().rows == len(jobs)


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
    assert store.verify().rows == 3
    with sqlite3.connect(store.file) as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("DROP TRIGGER no_delete")
        connection.execute(statement)
    with pytest.raises(InputError, match="row 2 was changed or removed"):
        store.verify()


KEY = b"k" * 32


@pytest.fixture
def keyed(store: AnswerStore) -> AnswerStore:
    """Three answers in a chain that started with a key."""
    store.seal(KEY)
    for image in "abc":
        store.save("R1", image, ANSWER, image)
    return store


def forge(file: Path, first: int) -> None:
    """Set every answer from a row on anew and mend the links with all that the file offers: the next row's key."""
    with closing(sqlite3.connect(file)) as connection:
        for trigger in ("no_update", "no_delete"):
            connection.execute(f"DROP TRIGGER {trigger}")
        keys = [bytes(row[0]) for row in connection.execute("SELECT key FROM seal")]
        before = ""
        for *values, link in connection.execute(f"SELECT {', '.join(_COLUMNS)}, chain FROM answers").fetchall():
            if values[0] >= first:
                values[5] = values[5].replace('"realism": 3', '"realism": 5')
                link = _link(keys[0] if keys else None, before, values)
                update = "UPDATE answers SET answer = ?, chain = ? WHERE number = ?"
                connection.execute(update, [values[5], link, values[0]])
            before = link
        connection.commit()


def test_a_chain_made_anew_is_found_with_the_sealed_key(keyed: AnswerStore) -> None:
    assert keyed.verify(KEY).keyed
    forge(keyed.file, first=2)
    with pytest.raises(InputError, match="row 2 was changed or removed"):
        keyed.verify(KEY)


def test_rows_cut_off_at_the_end_are_found_with_the_sealed_key(keyed: AnswerStore) -> None:
    with closing(sqlite3.connect(keyed.file)) as connection:
        connection.execute("DROP TRIGGER no_delete")
        connection.execute("DELETE FROM answers WHERE number = 3")
        connection.commit()
    with pytest.raises(InputError, match="rows after the last one, 2, were removed"):
        keyed.verify(KEY)


def test_no_key_of_a_row_that_is_written_stays_in_the_file(keyed: AnswerStore) -> None:
    keys = [KEY]
    for _ in range(3):
        keys.append(_following(keys[-1]))
    content = b"".join(path.read_bytes() for path in keyed.file.parent.iterdir())
    assert [key in content for key in keys] == [False, False, False, True]


def test_a_published_link_binds_even_where_the_key_is_known(store: AnswerStore) -> None:
    for image in "abc":
        store.save("R1", image, ANSWER, image)
    link = store.verify().link
    store.save("R1", "d", ANSWER, "d")
    assert store.verify(links=[link]).published == 3
    forge(store.file, first=1)
    assert store.verify().rows == 4  # without a key nothing else shows it
    with pytest.raises(InputError, match=f"link: {link} is not in"):
        store.verify(links=[link])


@pytest.mark.parametrize("log", [False, True])
def test_a_copy_that_cannot_be_written_is_read_whole(keyed: AnswerStore, public_folder: Path, log: bool) -> None:
    """With a write-ahead log, as a copy of a running or killed server has it, or without."""
    copy = public_folder / "copy"
    copy.mkdir()
    with keyed._connect() as connection:  # while a connection is open, the log stays
        if log:
            keyed.save("R1", "d", ANSWER, "d")
        connection.execute("SELECT 1 FROM answers")
        for file in keyed.file.parent.glob(f"{keyed.file.name}*"):
            if log and not file.name.endswith("-shm"):
                shutil.copy(file, copy)
    if not log:
        shutil.copy(keyed.file, copy)
    assert (copy / f"{keyed.file.name}-wal").exists() == log
    for path in (*copy.iterdir(), copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.read_bytes() for path in copy.iterdir()}
    with unprivileged():
        reading = AnswerStore(copy / keyed.file.name, "study", read_only=True)
        assert reading.verify(KEY).rows == len(reading.rows()) == 3 + log
    assert {path: path.read_bytes() for path in copy.iterdir()} == before


def test_a_view_waits_for_no_lock_and_is_not_lost(store: AnswerStore) -> None:
    with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        store.note_view("R1", "a")
        assert store.of_reader("R1") == {}
        assert time.monotonic() - started < 2  # it was half a minute
    store.note_view("R1", "a")
    store.save("R1", "a", ANSWER, "s")
    (row,) = store.rows()
    assert row.shown_at is not None


def test_the_first_view_counts_though_the_clock_went_back(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(["2026-01-01T10:00:00", "2026-01-01T09:00:00", "2026-01-01T09:00:30"])
    monkeypatch.setattr(answers, "now", lambda: next(times))
    store.note_view("R1", "a")
    store.note_view("R1", "a")
    store.save("R1", "a", ANSWER, "s")
    assert store.rows()[0].shown_at == "2026-01-01T10:00:00"


def test_wrong_files_are_named(store: AnswerStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds the answers of the study study, not of other"):
        AnswerStore(store.file, "other")
    with pytest.raises(InputError, match="nobody has answered yet"):
        AnswerStore(tmp_path / "none.sqlite3", "study", create=False)
    broken = tmp_path / "broken.sqlite3"
    broken.write_text("no database at all, and long enough to be looked at" * 9)
    with pytest.raises(InputError, match="cannot be used"):
        AnswerStore(broken, "study")
