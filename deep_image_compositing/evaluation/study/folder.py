"""The folder of a study: pictures, ``study.json``, which says whose each is, and the answers.

A picture's file name is a random token; which method made it stands in ``study.json`` alone, which
is never served. Neither a killed server nor a power cut takes back an acknowledged answer.
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
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.files import write_bytes

KEY = "study.json"
PICTURES = "pictures"
ANSWERS = "answers.sqlite"
PLACES = 3  # how many of the results a person puts in order

_VERSION = 1
_NOW = "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')"
# Answers of older servers without a ranking were begun and not confirmed; drafts are not read.
_SCHEMA = """
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
PRAGMA user_version = 1;
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

    def paths(self, folder: str | Path) -> list[Path]:
        """Their files."""
        return [picture_path(folder, token) for token in self.tokens()]

    def order(self, person: str) -> list[str]:
        """The results in the order in which ``person``, a token, sees them: always the same."""
        return _shuffled(self.results, f"{person} {self.id}")

    def check(self, ranking: Any) -> list[str]:
        """The ranking, if it is the best three results of this set, best first; else UsageError."""
        tokens = ranking if isinstance(ranking, list) else []
        if len(tokens) != PLACES or sum(token in tokens for token in self.results) != PLACES:
            raise UsageError(f"a ranking is {PLACES} different results of its own set, best first")
        return tokens


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

    def write(self, folder: str | Path) -> Study:
        """Write ``study.json``, whole or not at all; ImageError where it cannot be."""
        content = {"version": _VERSION, **asdict(self)}
        write_bytes(Path(folder) / KEY, (json.dumps(content, indent=2) + "\n").encode())
        return self

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
            raise UsageError(f"{folder} holds no study: make one with study make") from None
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not what study make writes: {error!r}") from error

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study of a folder that can be shown; UsageError and DataError say why it cannot."""
        study = cls.read(folder)
        if not (study.finished and study.shown):
            why = "is not finished, or no set of it is complete: run its study make again"
            raise UsageError(f"the study in {folder} {why}")
        for item in study.shown:
            if lost := [path for path in item.paths(folder) if not path.is_file()]:
                raise DataError(f"{lost[0]} of {item.name!r} is missing: make the study again")
        return study


def picture_path(folder: str | Path, token: str) -> Path:
    """The file of a picture: lossless WebP, exact like PNG and a third smaller."""
    return Path(folder) / PICTURES / f"{token}.webp"


def _shuffled(items: Iterable[str], salt: str) -> list[str]:
    """The items in an order that follows from them and ``salt`` alone, on any machine."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{salt} {item}".encode()).digest())


class Store(AbstractContextManager["Store"]):
    """The database of a study, made if need be, for any number of threads and processes.

    DataError if it is no such database or cannot be used, UsageError if it is another study's.
    """

    def __init__(self, path: str | Path, study: str) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            self._db = sqlite3.connect(path, 30, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise DataError(f"{path} cannot be used: {error}") from error
        try:
            for statement in _SCHEMA.split(";"):
                self._run(statement)
            self._run("INSERT INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", study)
            if self._run("SELECT id FROM study") != [(study,)]:
                raise UsageError(f"{path} holds the answers of another study: move it away")
        except BaseException:
            self._db.close()
            raise

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def join(self, name: str = "") -> str:
        """The token of somebody new, which is a secret of their browser; no name is anonymous."""
        token = secrets.token_urlsafe(24)
        self._run(f"INSERT INTO people (token, name, joined) VALUES (?, ?, {_NOW})", token, name)
        return token

    def people(self) -> dict[str, str]:
        """Everybody's token and name, in the order of joining."""
        return dict(self._run("SELECT token, name FROM people ORDER BY id"))

    def save(self, person: str, picture_set: str, ranking: Sequence[str]) -> None:
        """Keep what somebody, by token, confirmed; it takes the place of an earlier answer."""
        row = f"SELECT id, ?2, ?3, ?3, {_NOW} FROM people WHERE token = ?1"
        self._run(f"INSERT OR REPLACE INTO answers {row}", person, picture_set, json.dumps(ranking))

    def answers(self, person: str | None = None) -> list[tuple[int, str, list[str], str]]:
        """All that was confirmed, or what one person, by token, did; DataError if it is broken.

        Each: the person's number, the set's token, the ranking, best first, and when, in UTC.
        """
        select = "SELECT person, picture_set, ranking, confirmed FROM answers"
        joined = "JOIN people ON id = person WHERE ranking IS NOT NULL"
        some = "AND (?1 IS NULL OR token = ?1) ORDER BY person, picture_set"
        try:
            rows = self._run(f"{select} {joined} {some}", person)
            return [(who, what, json.loads(said), when) for who, what, said, when in rows]
        except ValueError as error:
            raise DataError(f"{self._path} holds an answer that is none: {error}") from error

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement, which is one transaction."""
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{self._path} cannot be used: {error}") from error
