"""The folder of a study: the pictures, ``study.json``, and the database of answers.

A picture's file name is a random token. Only ``study.json``, which is never served, says which
method made it. Acknowledged answers survive a killed server and a power cut.
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
PLACES = 3  # number of results that a person ranks

_VERSION = 1
_NOW = "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')"
# Older servers also stored unconfirmed answers, without a ranking; drafts are not read.
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


@dataclass
class PictureSet:
    """One pair of photographs and the result of every method."""

    id: str  # a random token; browsers do not see the name
    name: str  # of the pair
    foreground: str  # token of the photograph with the subject
    background: str  # token of the new background, at the same size
    results: Mapping[str, str]  # method names by picture token
    size: tuple[int, int] = (0, 0)  # (height, width) of all pictures; 0 until they are made
    # reasons why it is not shown, one per missing picture
    left_out: list[str] = field(default_factory=list)

    def tokens(self) -> list[str]:
        """The tokens of all pictures of the set."""
        return [self.foreground, self.background, *self.results]

    def paths(self, folder: str | Path) -> list[Path]:
        """The files of all pictures of the set."""
        return [picture_path(folder, token) for token in self.tokens()]

    def order(self, person: str) -> list[str]:
        """The result tokens in the fixed random order for ``person``, a token."""
        return _shuffled(self.results, f"{person} {self.id}")

    def check(self, ranking: Any) -> list[str]:
        """The ranking, if it holds three different results of this set; else UsageError."""
        tokens = ranking if isinstance(ranking, list) else []
        if len(tokens) != PLACES or sum(token in tokens for token in self.results) != PLACES:
            raise UsageError(f"a ranking is {PLACES} different results of its own set, best first")
        return tokens


@dataclass(frozen=True)
class Study:
    """The content of ``study.json``."""

    id: str  # a random token
    methods: tuple[str, ...]  # names in the order of the command
    sets: tuple[PictureSet, ...]  # one for each pair, including incomplete ones
    recipe: Mapping[str, Any] = field(default_factory=dict)  # all inputs of the pictures
    finished: bool = False  # whether ``study make`` has finished

    @property
    def shown(self) -> tuple[PictureSet, ...]:
        """The complete sets, which are shown."""
        return tuple(item for item in self.sets if not item.left_out)

    def order(self, person: str) -> list[PictureSet]:
        """The shown sets in the fixed random order for ``person``, a token."""
        by_id = {item.id: item for item in self.shown}
        return [by_id[id_] for id_ in _shuffled(by_id, f"{person} {self.id}")]

    def write(self, folder: str | Path) -> Study:
        """Write ``study.json`` atomically; ImageError if it cannot be written."""
        content = {"version": _VERSION, **asdict(self)}
        write_bytes(Path(folder) / KEY, (json.dumps(content, indent=2) + "\n").encode())
        return self

    @classmethod
    def read(cls, folder: str | Path) -> Study:
        """Read the study in a folder, finished or not; UsageError if none, DataError if broken."""
        path = Path(folder) / KEY
        try:
            content = json.loads(path.read_bytes())
            version = content.pop("version", None)
            if version != _VERSION:
                raise DataError(f"{path} has version {version!r}, not {_VERSION}: make it again")
            content["sets"] = tuple(
                PictureSet(**{**item, "size": tuple(item["size"])}) for item in content["sets"]
            )
            content["methods"] = tuple(content["methods"])
            return cls(**content)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{folder} holds no study: make one with study make") from None
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not what study make writes: {error!r}") from error

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """Read a study that is ready to be shown; UsageError or DataError if it is not."""
        study = cls.read(folder)
        if not (study.finished and study.shown):
            why = "is not finished, or no set of it is complete: run its study make again"
            raise UsageError(f"the study in {folder} {why}")
        for item in study.shown:
            for path in item.paths(folder):
                if not path.is_file():
                    raise DataError(f"{path} of {item.name!r} is missing: make the study again")
        return study


def picture_path(folder: str | Path, token: str) -> Path:
    """The file of a picture: lossless WebP, a third smaller than PNG."""
    return Path(folder) / PICTURES / f"{token}.webp"


def _shuffled(items: Iterable[str], salt: str) -> list[str]:
    """The items in an order that depends on them and ``salt`` alone."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{salt} {item}".encode()).digest())


class Store(AbstractContextManager["Store"]):
    """The database of a study, created if missing, for any number of threads and processes.

    DataError if the file cannot be used as such, UsageError if it belongs to another study.
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
        """Add a person and return their token, a secret of their browser; names may be empty."""
        token = secrets.token_urlsafe(24)
        self._run(f"INSERT INTO people (token, name, joined) VALUES (?, ?, {_NOW})", token, name)
        return token

    def people(self) -> dict[str, str]:
        """Names by token, in the order of joining."""
        return dict(self._run("SELECT token, name FROM people ORDER BY id"))

    def save(self, person: str, picture_set: str, ranking: Sequence[str]) -> None:
        """Store the confirmed answer of a person, by token, in place of an earlier one."""
        row = f"SELECT id, ?2, ?3, ?3, {_NOW} FROM people WHERE token = ?1"
        self._run(f"INSERT OR REPLACE INTO answers {row}", person, picture_set, json.dumps(ranking))

    def answers(self, person: str | None = None) -> list[tuple[int, str, list[str], str]]:
        """All confirmed answers, or those of one person, by token; DataError if one is broken.

        Each is the person's number, the set's token, the ranking, best first, and the time in UTC.
        """
        rows = self._run(
            "SELECT person, picture_set, ranking, confirmed FROM answers JOIN people ON id = person"
            " WHERE ranking IS NOT NULL AND (?1 IS NULL OR token = ?1)"
            " ORDER BY person, picture_set",
            person,
        )
        try:
            return [(number, id_, json.loads(ranking), time) for number, id_, ranking, time in rows]
        except ValueError as error:
            raise DataError(f"{self._path} holds a broken answer: {error}") from error

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement as one transaction."""
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{self._path} cannot be used: {error}") from error
