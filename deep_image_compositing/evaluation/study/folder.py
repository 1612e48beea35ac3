"""The folder of a study: pictures, ``study.json``, which says whose each is, and the answers.

A picture's file name is a random token; which method made it stands in ``study.json`` alone, and
that file is never served. Answers are in SQLite, in WAL mode with full synchronisation: neither a
killed server nor a power cut takes back one that was acknowledged.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.files import write_bytes

KEY = "study.json"
PICTURES = "pictures"
ANSWERS = "answers.sqlite"
PLACES = 3  # how many of the results a person puts in order

Ranking = Sequence[str | None]  # tokens of results, best first; None where a place is free

_VERSION = 1
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS study (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS people (
  id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, name TEXT NOT NULL, joined TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
  person INTEGER NOT NULL REFERENCES people (id), picture_set TEXT NOT NULL,
  draft TEXT NOT NULL, ranking TEXT, confirmed TEXT, PRIMARY KEY (person, picture_set)
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True)
class PictureSet:
    """One pair of photographs and what every method made of it."""

    id: str  # a random token; all that a browser learns of the set
    name: str  # of the pair
    foreground: str  # token of the photograph with the subject
    background: str  # token of the new background, covering the same frame
    results: Mapping[str, str]  # token of a picture to the name of its method
    size: tuple[int, int] = (0, 0)  # (height, width) of all its pictures; 0 until they are made
    left_out: tuple[str, ...] = ()  # why it is not shown: a sentence for each picture it lacks

    def tokens(self) -> list[str]:
        """Every picture of the set."""
        return [self.foreground, self.background, *self.results]

    def order(self, person: str) -> list[str]:
        """The results in the order in which ``person``, a token, sees them: always the same."""
        return _shuffled(self.results, f"{person} {self.id}")

    def check(self, ranking: Any, *, complete: bool) -> Ranking:
        """The ranking, if it is one: different results of this set, best first, None where free.

        UsageError for all else, and for free places where it is to be ``complete``.
        """
        chosen = [x for x in ranking if x is not None] if isinstance(ranking, list) else None
        if chosen is None or len(ranking) != PLACES or (complete and len(chosen) < PLACES):
            raise UsageError(f"a ranking has {PLACES} places, free ones only until it is confirmed")
        if not all(isinstance(token, str) and token in self.results for token in chosen):
            raise UsageError("a ranking names results of its own set")
        if len(set(chosen)) < len(chosen):
            raise UsageError("a ranking names no result twice")
        return ranking


@dataclass(frozen=True)
class Study:
    """What ``study.json`` holds."""

    id: str  # a random token
    methods: tuple[str, ...]  # their names, in the order in which they were given
    sets: tuple[PictureSet, ...]  # every pair, those that are left out included
    recipe: Mapping[str, Any] = field(default_factory=dict)  # all that the pictures follow from
    finished: bool = False  # whether ``study make`` has come to its end

    @property
    def shown(self) -> tuple[PictureSet, ...]:
        """The sets that people are shown: those of which every picture is there."""
        return tuple(item for item in self.sets if not item.left_out)

    def order(self, person: str) -> list[PictureSet]:
        """The sets in the order in which ``person``, a token, sees them: always the same."""
        by_id = {item.id: item for item in self.shown}
        return [by_id[name] for name in _shuffled(by_id, f"{person} {self.id}")]

    def write(self, folder: str | Path) -> None:
        """Write ``study.json``, whole or not at all; ImageError where it cannot be."""
        content = {"version": _VERSION, **asdict(self)}
        write_bytes(Path(folder) / KEY, (json.dumps(content, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: str | Path) -> Study:
        """The study of a folder, finished or not; UsageError if none, DataError if broken."""
        path = Path(folder) / KEY
        try:
            content = json.loads(path.read_bytes())
            version = content.pop("version", None)
            if version != _VERSION:
                raise DataError(f"{path} has version {version!r}, not {_VERSION}: make it again")
            for item in content["sets"]:
                item |= {"size": tuple(item["size"]), "left_out": tuple(item["left_out"])}
            content["sets"] = tuple(PictureSet(**item) for item in content["sets"])
            content["methods"] = tuple(content["methods"])
            return cls(**content)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{folder} holds no study: make one with deep-image-compositing study make"
            ) from None
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not what study make writes: {error!r}") from error

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study of a folder, ready to be shown.

        UsageError if it is not finished or has no set to show, DataError if a picture is missing.
        """
        study = cls.read(folder)
        if not study.finished:
            raise UsageError(f"the study in {folder} is not finished: run its study make again")
        if not study.shown:
            raise UsageError(f"the study in {folder} has no set that is complete")
        for name, token in ((item.name, token) for item in study.shown for token in item.tokens()):
            if not (path := picture_path(folder, token)).is_file():
                raise DataError(f"{path} of {name!r} is missing: make the study again")
        return study


def picture_path(folder: str | Path, token: str) -> Path:
    """The file of a picture: lossless WebP, exact like PNG and a third smaller."""
    return Path(folder) / PICTURES / f"{token}.webp"


def _shuffled(items: Iterable[str], salt: str) -> list[str]:
    """The items in an order that follows from them and ``salt`` alone, on any machine."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{salt} {item}".encode()).digest())


class Person(NamedTuple):
    """Somebody who takes part: a number, the secret of their browser, and a name, or none."""

    id: int
    token: str
    name: str


class Answer(NamedTuple):
    """What one person, by number, has said about one set, by token."""

    person: int
    picture_set: str
    draft: Ranking  # what they see chosen; it may have free places
    ranking: Ranking | None  # what they confirmed last; None until they did
    confirmed: str | None  # when, in UTC


class Store(AbstractContextManager["Store"]):
    """The database of one study, made if need be; for any number of threads and processes.

    DataError if it is no such database or cannot be used, UsageError if it is another study's.
    """

    def __init__(self, path: str | Path, study: str) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        try:
            self._database = sqlite3.connect(
                self._path, timeout=30, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise DataError(f"{path} cannot be used: {error}") from error
        try:
            version, *_ = self._run("PRAGMA user_version")[0]
            if version not in (0, _VERSION):
                raise DataError(f"{path} has version {version}; expected {_VERSION}")
            for statement in _SCHEMA.split(";"):
                self._run(statement)
            self._run("INSERT INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", study)
            if self._run("SELECT id FROM study") != [(study,)]:
                raise UsageError(f"{path} holds the answers of another study: move it away")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database; what was stored is on the disk already."""
        self._database.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def join(self, name: str = "") -> Person:
        """Somebody new, with a random token; an empty name to stay anonymous."""
        token = secrets.token_urlsafe(24)
        insert = (
            "INSERT INTO people (token, name, joined) VALUES (?, ?, ?) RETURNING id, token, name"
        )
        return Person(*self._run(insert, token, name, _now())[0])

    def people(self) -> list[Person]:
        """Everybody, in the order of joining."""
        return [Person(*row) for row in self._run("SELECT id, token, name FROM people ORDER BY id")]

    def person(self, token: str) -> Person | None:
        """Who has this token; None if nobody has."""
        rows = self._run("SELECT id, token, name FROM people WHERE token = ?", token)
        return Person(*rows[0]) if rows else None

    def save(self, person: Person, picture_set: str, ranking: Ranking, *, confirmed: bool) -> None:
        """Keep what somebody chose; until that is confirmed, too, an earlier answer counts."""
        text = json.dumps(ranking)
        self._run(
            "INSERT INTO answers VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET draft = ?3, "
            "ranking = coalesce(?4, ranking), confirmed = coalesce(?5, confirmed)",
            person.id, picture_set, text, *((text, _now()) if confirmed else (None, None)),
        )  # fmt: skip

    def answers(self, person: Person | None = None) -> list[Answer]:
        """All that was said, or what one person said; DataError for a row that is broken."""
        rows = self._run(
            "SELECT person, picture_set, draft, ranking, confirmed FROM answers "
            "WHERE ?1 IS NULL OR person = ?1 ORDER BY person, picture_set",
            None if person is None else person.id,
        )
        try:
            return [
                Answer(who, what, json.loads(draft), ranking and json.loads(ranking), when)
                for who, what, draft, ranking, when in rows
            ]
        except ValueError as error:
            raise DataError(f"{self._path} holds an answer that is none: {error}") from error

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement, which is one transaction."""
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{self._path} cannot be used: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
