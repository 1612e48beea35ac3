"""The answers of a study, in SQLite: every one is on the disk before the browser hears that it is.

The database is in WAL mode with full synchronisation, so that neither a killed server nor a power
cut takes back an answer that was acknowledged; people click far more slowly than a disk syncs.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import DataError, UsageError

Ranking = tuple[str | None, ...]
"""Tokens of results, best first; None where a place is free."""

MAX_NAME = 80
"""Characters of a person's name."""

_VERSION = 1
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS study (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS people (
  id INTEGER PRIMARY KEY,
  token TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  joined TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
  person INTEGER NOT NULL REFERENCES people (id),
  picture_set TEXT NOT NULL,
  draft TEXT NOT NULL,
  ranking TEXT,
  confirmed TEXT,
  PRIMARY KEY (person, picture_set)
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True)
class Person:
    """Somebody who takes part: a number, the secret of their browser, and a name, or none."""

    id: int
    token: str
    name: str


@dataclass(frozen=True)
class Answer:
    """What one person, by number, has said about one set, by token."""

    person: int
    picture_set: str
    draft: Ranking  # what they see chosen; it may have free places
    ranking: Ranking | None  # what they confirmed last; None until they did
    confirmed: str | None  # when, in UTC


class Store:
    """The database of one study, made if need be; for any number of threads and processes.

    Raises:
        DataError: the file is no such database, or cannot be opened.
        UsageError: it belongs to another study, by its token.
    """

    def __init__(self, path: str | Path, study: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        with self._errors():
            self._database = sqlite3.connect(
                self._path, timeout=30, isolation_level=None, check_same_thread=False
            )
        try:
            version, *_ = self._run("PRAGMA user_version")[0]
            if version not in (0, _VERSION):
                raise DataError(f"{self._path} has version {version}; expected {_VERSION}")
            with self._errors():
                self._database.executescript(_SCHEMA)
            self._run("INSERT INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", (study,))
            if self._run("SELECT id FROM study") != [(study,)]:
                raise UsageError(f"{self._path} holds the answers of another study: move it away")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database; what was stored is on the disk already."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def join(self, name: str = "") -> Person:
        """Somebody new, with a random token; an empty name to stay anonymous."""
        token = secrets.token_urlsafe(24)
        row = self._run(
            "INSERT INTO people (token, name, joined) VALUES (?, ?, ?) RETURNING id",
            (token, name, _now()),
        )
        return Person(row[0][0], token, name)

    def person(self, token: str) -> Person | None:
        """Who has this token; None if nobody has."""
        rows = self._run("SELECT id, token, name FROM people WHERE token = ?", (token,))
        return Person(*rows[0]) if rows else None

    def people(self) -> list[Person]:
        """Everybody, in the order of joining."""
        return [Person(*row) for row in self._run("SELECT id, token, name FROM people ORDER BY id")]

    def save(
        self, person: Person, picture_set: str, ranking: Sequence[str | None], *, confirmed: bool
    ) -> None:
        """Keep what somebody chose; until that is confirmed, too, an earlier answer counts."""
        text = json.dumps(ranking)
        self._run(
            "INSERT INTO answers VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET draft = ?3, "
            "ranking = coalesce(?4, ranking), confirmed = coalesce(?5, confirmed)",
            (person.id, picture_set, text, *((text, _now()) if confirmed else (None, None))),
        )

    def answers(self, person: Person | None = None) -> list[Answer]:
        """All that was said, or what one person said; DataError for a row that is broken."""
        rows = self._run(
            "SELECT person, picture_set, draft, ranking, confirmed FROM answers "
            "WHERE ?1 IS NULL OR person = ?1 ORDER BY person, picture_set",
            (None if person is None else person.id,),
        )
        try:
            return [
                Answer(who, what, _ranking(draft), _ranking(ranking) if ranking else None, when)
                for who, what, draft, ranking, when in rows
            ]
        except (TypeError, ValueError) as error:
            raise DataError(f"{self._path} holds an answer that is none: {error}") from error

    def _run(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """One statement, which is one transaction."""
        with self._lock, self._errors():
            return self._database.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"{self._path} cannot be used: {error}") from error


def _ranking(text: str) -> Ranking:
    ranking = json.loads(text)
    if not isinstance(ranking, list) or any(not isinstance(x, str | None) for x in ranking):
        raise ValueError(f"{text!r} is no ranking")
    return tuple(ranking)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
