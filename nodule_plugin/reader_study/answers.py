"""The readers' answers: an SQLite table to which rows are added and in which none is ever changed.

Every row carries a link, made of itself, the link before it, and a key that each row replaces by the key's SHA-256: the
database holds the key of the next row, with which none of the rows before can be made anew. The first key is sealed
with the study's key, so that whoever opens the seal can check every link (:meth:`AnswerStore.verify`). A link that was
published meanwhile binds all rows up to it, whoever holds keys. Studies of earlier releases have no key: their links
are plain SHA-256, which anybody can make anew.

Triggers refuse changes through SQL. A commit returns after the disk has it (write-ahead log, ``synchronous=FULL``):
what was confirmed to a reader survives a crash of server or machine.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.questions import Answer

SAVE_PATIENCE, VIEW_PATIENCE = 10.0, 0.05
"""Seconds to wait while another process locks the database: a page must not wait, and a browser gives up after 15."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS seal (key BLOB NOT NULL);  -- one row, the key of the next link; none in older studies
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
    chain TEXT NOT NULL,            -- the link: HMAC-SHA256 (older studies: SHA-256) of the link before and this row
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
_INSERT_VIEW = "INSERT INTO views VALUES (?, ?, ?)"
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


@dataclass(frozen=True)
class Chain:
    """What :meth:`AnswerStore.verify` saw.

    Attributes:
        rows: how many there are.
        link: number and link of the last one, which can be published; empty where there is none.
        keyed: whether every link was checked with the sealed key, and that none is missing at the end.
        published: how many rows published links bind.
    """

    rows: int
    link: str
    keyed: bool
    published: int


class AnswerStore:
    """Answers of one study.

    Args:
        file: the database; made where there is none.
        study: id of the study.
        create: False to refuse a file that is not there.
        read_only: to write no answer; the file may then lie in a folder, or on a medium, that cannot be written to.

    Raises:
        InputError: if the file is no such database, or of another study.
    """

    def __init__(self, file: Path, study: str, create: bool = True, read_only: bool = False) -> None:
        self.file = self._source = file
        self._read_only = read_only
        self._late_views: deque[tuple[str, str, str]] = deque()
        if (read_only or not create) and not file.is_file():
            raise InputError(f"answers: there is no {file}; nobody has answered yet, or the file was moved")
        try:
            if read_only and not _can_be_locked(file):
                self._copy = _copied(file)
                self._source = Path(self._copy.name, file.name)
            with self._connect() as connection:
                if not read_only:
                    connection.executescript(_SCHEMA)
                    connection.execute(
                        "INSERT OR IGNORE INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", [study]
                    )
                (stored,) = connection.execute("SELECT id FROM study").fetchone() or ("none",)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"answers: {file} cannot be used ({error}); move it away or restore it") from error
        if stored != study:
            raise InputError(f"answers: {file} holds the answers of the study {stored}, not of {study}")

    @contextmanager
    def _connect(self, patience: float = SAVE_PATIENCE) -> Iterator[sqlite3.Connection]:
        """A connection for the block; what a transaction has not committed by its end is undone."""
        with closing(sqlite3.connect(self._source, timeout=patience, isolation_level=None)) as connection:
            if self._read_only:
                connection.execute("PRAGMA query_only=ON")
            else:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA secure_delete=ON")  # the key that was replaced must not stay in the file
            yield connection

    def seal(self, key: bytes) -> None:
        """Start the chain with a key, before the first answer."""
        with self._connect() as connection:
            connection.execute("INSERT INTO seal SELECT ? WHERE NOT EXISTS (SELECT 1 FROM seal)", [key])

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
            while self._late_views:
                connection.execute(_INSERT_VIEW, self._late_views.popleft())
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
        shown = connection.execute(
            "SELECT at FROM views WHERE reader = ? AND image = ? ORDER BY rowid LIMIT 1", [reader, image]
        ).fetchone()
        values = [number + 1, reader, image, revision + 1, submission, _encode(answer)]
        values += [shown[0] if shown else None, now(), visible_ms]
        key = _next_key(connection)
        marks = ", ".join("?" * (len(values) + 1))
        connection.execute(f"INSERT INTO answers VALUES ({marks})", [*values, _link(key, chain, values)])
        if key is not None:
            connection.execute("UPDATE seal SET key = ?", [_following(key)])
        return Outcome.CHANGED if revision else Outcome.SAVED

    def note_view(self, reader: str, image: str) -> None:
        """Note that a reader was shown an image's page; where the database is locked, with the next answer."""
        view = (reader, image, now())
        try:
            with self._connect(VIEW_PATIENCE) as connection:
                connection.execute(_INSERT_VIEW, view)
        except sqlite3.OperationalError:
            self._late_views.append(view)

    def of_reader(self, reader: str) -> dict[str, list[Row]]:
        """Image -> a reader's answers to it, the oldest first."""
        with self._connect() as connection:
            rows = connection.execute(_SELECT + " WHERE reader = ? ORDER BY number", [reader]).fetchall()
        answers: dict[str, list[Row]] = {}
        for values in rows:
            row = _row(values)
            answers.setdefault(row.image, []).append(row)
        return answers

    def rows(self) -> list[Row]:
        """Every row, in the order of writing."""
        with self._connect() as connection:
            return [_row(values) for values in connection.execute(_SELECT + " ORDER BY number")]

    def verify(self, key: bytes | None = None, links: Sequence[str] = ()) -> Chain:
        """Check the chain from the first row to the last.

        Args:
            key: that the chain was started with; without it the links of a chain with keys are not checked.
            links: that were published, as :attr:`Chain.link` gives them.

        Raises:
            InputError: naming the first row that was changed, or after which one is missing, or the link that is not
                there.
        """
        with self._connect() as connection:
            rows = connection.execute(_SELECT + " ORDER BY number").fetchall()
            next_key = _next_key(connection)
        checked = key is not None or next_key is None
        before, present = "", {}
        for number, (*values, link) in enumerate(rows, start=1):
            if values[0] != number or (checked and link != _link(key, before, values)):
                raise InputError(f"answers: {self.file}: row {number} was changed or removed after it was written")
            before, present[f"{number}-{link}"] = link, number
            key = key and _following(key)
        if key is not None and key != next_key:
            raise InputError(f"answers: {self.file}: rows after the last one, {len(rows)}, were removed")
        for link in links:
            if link not in present:
                raise InputError(
                    f"link: {link} is not in {self.file}: rows were changed or removed, or the link is another study's"
                )
        return Chain(
            len(rows), next(reversed(present), ""), key is not None, max((present[x] for x in links), default=0)
        )


def now() -> str:
    """The time, UTC, to the millisecond, in a form that sorts."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _row(values: tuple[Any, ...]) -> Row:
    fields = dict(zip(_COLUMNS, values))
    return Row(**{**fields, "answer": json.loads(fields["answer"])})


def _encode(answer: Mapping[str, Any]) -> str:
    return json.dumps(answer, sort_keys=True, ensure_ascii=False)


def _next_key(connection: sqlite3.Connection) -> bytes | None:
    """The key of the next link; None where the chain has no keys."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'seal'").fetchone():
        return None  # a database of an earlier release that is only read
    row = connection.execute("SELECT key FROM seal").fetchone()
    return bytes(row[0]) if row else None


def _following(key: bytes) -> bytes:
    """The key after this one; the way back would need a SHA-256 to be inverted."""
    return hashlib.sha256(b"nodule-plugin: the key of the next answer" + key).digest()


def _link(key: bytes | None, before: str, values: list[Any]) -> str:
    content = json.dumps([before, *values], ensure_ascii=False).encode()
    return hashlib.sha256(content).hexdigest() if key is None else hmac.digest(key, content, "sha256").hex()


def _copied(file: Path) -> TemporaryDirectory[str]:
    """A folder, removed with the object, that holds a copy of a database and its write-ahead log.

    SQLite writes beside a database even to read it or, told that nothing changes ("immutable"), leaves out what is
    still in the log.
    """
    folder = TemporaryDirectory(prefix="answers-")
    for path in (file, file.with_name(f"{file.name}-wal")):
        if path.is_file():
            shutil.copyfile(path, Path(folder.name, path.name))
    return folder


def _can_be_locked(file: Path) -> bool:
    """Whether SQLite can read a file where it lies, beside a server that may write to it."""
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        return False
    return True
