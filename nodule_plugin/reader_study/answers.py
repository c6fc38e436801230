"""The readers' answers: an SQLite table to which rows are added and in which none is ever changed.

Every row carries the SHA-256 of itself and the row before it, so that a row that was altered, slipped in or taken out
from among the others is found out (:meth:`AnswerStore.verify`). Triggers refuse changes through SQL. A commit returns
after the disk has it (write-ahead log, ``synchronous=FULL``): what was confirmed to a reader survives a crash of server
or machine.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.questions import Answer

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY,     -- from 1, without a gap
    reader TEXT NOT NULL,
    image TEXT NOT NULL,
    revision INTEGER NOT NULL,      -- 1 for the first answer to an image, then counting
    submission TEXT NOT NULL,       -- names the form that was sent: one form is one row, however often it arrives
    answer TEXT NOT NULL,           -- JSON
    shown_at TEXT,                  -- UTC, when the server first sent the image's page
    answered_at TEXT NOT NULL,      -- UTC, when the server received the answer
    visible_ms INTEGER,             -- how long the page was on the screen, as the browser says
    chain TEXT NOT NULL,            -- SHA-256 of the row before and this one
    UNIQUE (reader, image, revision),
    UNIQUE (reader, submission)
);
CREATE TABLE IF NOT EXISTS views (reader TEXT NOT NULL, image TEXT NOT NULL, at TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON answers
    BEGIN SELECT RAISE(ABORT, 'answers are added, never changed'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON answers
    BEGIN SELECT RAISE(ABORT, 'answers are added, never deleted'); END;
"""
_COLUMNS = ("number", "reader", "image", "revision", "submission", "answer", "shown_at", "answered_at", "visible_ms")
_SELECT = f"SELECT {', '.join(_COLUMNS)}, chain FROM answers"


class Outcome(Enum):
    """What became of a form that was sent."""

    SAVED = "saved"
    """The first answer to its image."""
    CHANGED = "changed"
    """A further revision; the earlier ones stay."""
    REPEATED = "repeated"
    """The same form, or the same answer, again: nothing was written, nothing was lost."""
    CONFLICT = "conflict"
    """The form was filled in on top of another revision than the present one: nothing was written."""


@dataclass(frozen=True)
class Row:
    """One revision of one answer; the fields are the table's columns."""

    number: int
    reader: str
    image: str
    revision: int
    submission: str
    answer: Answer
    shown_at: str | None
    answered_at: str
    visible_ms: int | None


class AnswerStore:
    """Answers of one study.

    Args:
        file: the database; made where there is none.
        study: id of the study.
        create: False to refuse a file that is not there.

    Raises:
        InputError: if the file is no such database, or of another study.
    """

    def __init__(self, file: Path, study: str, create: bool = True) -> None:
        self.file = file
        if not create and not file.is_file():
            raise InputError(f"answers: there is no {file}; nobody has answered yet, or the file was moved")
        try:
            with self._connect() as connection:
                connection.executescript(_SCHEMA)
                connection.execute(
                    "INSERT OR IGNORE INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", [study]
                )
                found = connection.execute("SELECT id FROM study").fetchone()[0]
        except sqlite3.Error as error:
            raise InputError(f"answers: {file} cannot be used ({error}); move it away or restore it") from error
        if found != study:
            raise InputError(f"answers: {file} holds the answers of the study {found}, not of {study}")

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection within one transaction, which ends with the block."""
        connection = sqlite3.connect(self.file, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            yield connection
        finally:
            connection.close()

    def save(
        self,
        reader: str,
        image: str,
        answer: Mapping[str, Any],
        submission: str,
        on_revision: int = 0,
        visible_ms: int | None = None,
    ) -> Outcome:
        """Write an answer down, unless it is there already.

        Args:
            reader, image: whose answer to which image.
            answer: complete, see :mod:`nodule_plugin.reader_study.questions`.
            submission: names the form.
            on_revision: the revision that the reader saw when the form was filled in, 0 for none.
            visible_ms: how long the page was visible.
        """
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            outcome = self._save(connection, reader, image, dict(answer), submission, on_revision, visible_ms)
            connection.execute("COMMIT")
        return outcome

    def _save(
        self,
        connection: sqlite3.Connection,
        reader: str,
        image: str,
        answer: Answer,
        submission: str,
        on_revision: int,
        visible_ms: int | None,
    ) -> Outcome:
        sent = connection.execute("SELECT 1 FROM answers WHERE reader = ? AND submission = ?", [reader, submission])
        if sent.fetchone():
            return Outcome.REPEATED
        where = " WHERE reader = ? AND image = ? ORDER BY revision DESC LIMIT 1"
        present = connection.execute(_SELECT + where, [reader, image]).fetchone()
        if present and _row(present).answer == answer:
            return Outcome.REPEATED
        revision = present[3] if present else 0
        if revision != on_revision:
            return Outcome.CONFLICT
        last = connection.execute("SELECT number, chain FROM answers ORDER BY number DESC LIMIT 1").fetchone()
        number, chain = last or (0, "")
        shown = connection.execute("SELECT MIN(at) FROM views WHERE reader = ? AND image = ?", [reader, image])
        values = [number + 1, reader, image, revision + 1, submission, _encode(answer)]
        values += [shown.fetchone()[0], now(), visible_ms]
        marks = ", ".join("?" * (len(values) + 1))
        connection.execute(f"INSERT INTO answers VALUES ({marks})", [*values, _chain(chain, values)])
        return Outcome.CHANGED if revision else Outcome.SAVED

    def note_view(self, reader: str, image: str) -> None:
        """Note that a reader was shown an image's page."""
        with self._connect() as connection:
            connection.execute("INSERT INTO views VALUES (?, ?, ?)", [reader, image, now()])

    def of_reader(self, reader: str) -> dict[str, list[Row]]:
        """Image -> a reader's answers to it, the oldest first."""
        with self._connect() as connection:
            found = connection.execute(_SELECT + " WHERE reader = ? ORDER BY number", [reader]).fetchall()
        answers: dict[str, list[Row]] = {}
        for values in found:
            row = _row(values)
            answers.setdefault(row.image, []).append(row)
        return answers

    def rows(self) -> list[Row]:
        """Every row, in the order of writing."""
        with self._connect() as connection:
            return [_row(values) for values in connection.execute(_SELECT + " ORDER BY number")]

    def verify(self) -> int:
        """Check the chain from the first row to the last.

        Returns:
            How many rows there are.

        Raises:
            InputError: naming the first row that was changed, or after which one is missing.
        """
        with self._connect() as connection:
            found = connection.execute(_SELECT + " ORDER BY number").fetchall()
        before = ""
        for place, (*values, chain) in enumerate(found, start=1):
            if values[0] != place or chain != _chain(before, values):
                raise InputError(f"answers: {self.file}: row {place} was changed or removed after it was written")
            before = chain
        return len(found)


def now() -> str:
    """The time, UTC, to the millisecond, in a form that sorts."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _row(values: tuple[Any, ...]) -> Row:
    fields = dict(zip(_COLUMNS, values))
    return Row(**{**fields, "answer": json.loads(fields["answer"])})


def _encode(answer: Mapping[str, Any]) -> str:
    return json.dumps(answer, sort_keys=True, ensure_ascii=False)


def _chain(before: str, values: list[Any]) -> str:
    return hashlib.sha256(json.dumps([before, *values], ensure_ascii=False).encode()).hexdigest()
