"""The folder of a study: its pictures, and ``study.json``, which says whose each picture is.

Making, serving and scoring meet here. A picture's file name is a random token; which method made it
stands in ``study.json`` alone, and that file is never served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.files import write_bytes

KEY = "study.json"
PICTURES = "pictures"
ANSWERS = "answers.sqlite"
SUFFIX = ".webp"
"""Pictures are lossless WebP: exact like PNG, a third smaller, and every browser shows it."""

PLACES = 3
"""How many of the results a person puts in order."""

_VERSION = 1


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

    def tokens(self) -> Iterator[str]:
        """Every picture of the set."""
        yield self.foreground
        yield self.background
        yield from self.results

    def order(self, person: str) -> list[str]:
        """The results in the order in which ``person``, a token, sees them: always the same."""
        return shuffled(self.results, f"{person} {self.id}")

    def check(self, ranking: Sequence[Any], *, complete: bool) -> tuple[str | None, ...]:
        """The ranking, if it can be one: three different results of this set, best first.

        A place may be free, None, unless it is to be ``complete``; UsageError for all else.
        """
        if not isinstance(ranking, list | tuple) or len(ranking) != PLACES:
            raise UsageError(f"a ranking has {PLACES} places")
        tokens = [token for token in ranking if token is not None]
        if complete and len(tokens) < PLACES:
            raise UsageError(f"a complete ranking names {PLACES} results, not {len(tokens)}")
        if any(not isinstance(token, str) or token not in self.results for token in tokens):
            raise UsageError("a ranking names results of its own set")
        if len(set(tokens)) < len(tokens):
            raise UsageError("a ranking names no result twice")
        return tuple(ranking)


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
        return [by_id[name] for name in shuffled(by_id, f"{person} {self.id}")]

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
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{folder} holds no study: make one with deep-image-compositing study make"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        version = content.pop("version", None) if isinstance(content, dict) else None
        if version != _VERSION:
            raise DataError(f"{path} has version {version!r}; expected {_VERSION}: make it again")
        try:
            for item in content["sets"]:
                item |= {"size": tuple(item["size"]), "left_out": tuple(item["left_out"])}
            content["sets"] = tuple(PictureSet(**item) for item in content["sets"])
            content["methods"] = tuple(content["methods"])
            return cls(**content)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is not what study make writes: {error!r}") from error

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study of a folder, ready to be shown.

        Raises:
            UsageError: it is not finished, or has no set to show.
            DataError: a picture is missing, or as ``read``.
        """
        study = cls.read(folder)
        if not study.finished:
            raise UsageError(f"the study in {folder} is not finished: run its study make again")
        if not study.shown:
            raise UsageError(f"the study in {folder} has no set that is complete")
        for item in study.shown:
            for path in (picture_path(folder, token) for token in item.tokens()):
                if not path.is_file():
                    raise DataError(f"{path} of {item.name!r} is missing: make the study again")
        return study


def picture_path(folder: str | Path, token: str) -> Path:
    """The file of a picture; ``token`` must be one that ``study.json`` holds."""
    return Path(folder) / PICTURES / f"{token}{SUFFIX}"


def shuffled(items: Mapping[str, Any], salt: str) -> list[str]:
    """The keys in an order that follows from them and ``salt`` alone, on any machine."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{salt} {item}".encode()).digest())
