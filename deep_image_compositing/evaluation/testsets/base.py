"""What all test sets share: the sample, the interface, names, and reading without surprises."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from deep_image_compositing.data.feeds import Reading, ShardFeed, open_source
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.shards import Index, Record, read_records
from deep_image_compositing.data.transfer import is_local, local_path, open_shard
from deep_image_compositing.errors import CompositingError, DataError, UsageError
from deep_image_compositing.opening import open_picture

Paths = str | Path | Sequence[str | Path]
"""One path or several; what a source of training data may be, as text."""

_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What the system and Pillow raise about broken files."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One photograph to cut out and one background to set its subject into; uint8, on the CPU.

    Attributes:
        name: unique in its set, fit for a file name.
        foreground: (3, H, W), the photograph, old background and all.
        background: (3, H, W), already covering the frame; of any size where there is no truth.
        masks: the given mask (1, H, W) by grade; None where the method's segmenter finds it.
        composite: (3, H, W), the truth.
        alpha: (1, H, W), the true opacity.
        foreground_color: (3, H, W), the subject's true straight colour; 0 where alpha is.
        old_background: (3, H, W), what the photograph shows behind the subject.
    """

    name: str
    foreground: Tensor
    background: Tensor
    masks: dict[str, Tensor | None] = field(default_factory=dict)
    composite: Tensor | None = None
    alpha: Tensor | None = None
    foreground_color: Tensor | None = None
    old_background: Tensor | None = None


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair.

    Attributes:
        name: unique, fit for a file name.
        foreground: the photograph with the subject.
        background: the photograph that becomes the new background.
        mask: white where the subject is; None for the segmenter's own.
    """

    name: str
    foreground: Path
    background: Path
    mask: Path | None = None


class TestSet(ABC):
    """Samples by number; the same ones in any order and in any process.

    Attributes:
        name: of the kind of set.
        grades: of the given masks, in the order of tables.
    """

    __test__: ClassVar[bool] = False  # no test, whatever pytest makes of the name

    name: ClassVar[str]
    grades: tuple[str, ...]

    @abstractmethod
    def names(self) -> list[str]:
        """The samples' names, in order, without making any sample."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``.

        Raises:
            IndexError: beyond the last.
            DataError: a picture that cannot be read.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the set is and what makes it again, as JSON has it."""

    @abstractmethod
    def inputs(self) -> list[list[Any]]:
        """What the set is made from: path, bytes and time of change (or SHA-256) of each file."""

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the description and of the files that the set is made from.

        Pictures are not read for it: what has the same sizes and times of change counts as the
        same.
        """
        content = json.dumps([self.describe(), self.inputs()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


# Names


def unique_names(wanted: Iterable[str]) -> list[str]:
    """Names fit for files, which differ even without regard to case: a number tells equals apart.

    Args:
        wanted: any text; what fits already is kept.
    """
    taken: set[str] = set()
    found = []
    for text in wanted:
        name = re.sub(r"[^\w.+-]+", "_", re.sub(r"[/\\]", "-", text)).lstrip(".-") or "_"
        if len(name) > 80:
            name = f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        unique, count = name, 1
        while unique.casefold() in taken:
            count += 1
            unique = f"{name}-{count}"
        taken.add(unique.casefold())
        found.append(unique)
    return found


def as_paths(given: Paths | None, what: str) -> list[str]:
    """The paths that were given, as text.

    Raises:
        UsageError: something that is no path.
    """
    each: list[Any] = [given]
    if given is None or (isinstance(given, Sequence) and not isinstance(given, str)):
        each = list(given or ())
    if not all(isinstance(path, str | Path) and str(path) for path in each):
        raise UsageError(f"{what} are one path or a list of paths, got {given!r}")
    return [str(path) for path in each]


def check_grades(given: Sequence[str] | str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The grades that were given, in the order of ``known``; None means all.

    Raises:
        UsageError: another grade, or none at all.
    """
    if given is None:
        return known
    wanted = [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)
    unknown = [grade for grade in wanted if grade not in known]
    if unknown or not wanted:
        raise UsageError(
            f"grades of masks are some of {', '.join(known)}, got {', '.join(wanted) or 'none'}"
        )
    return tuple(grade for grade in known if grade in wanted)


# Reading


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let whatever cannot be read be told by its name.

    Raises:
        DataError: in the place of what Pillow and the system raise.
    """
    try:
        yield
    except CompositingError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error
    except _BROKEN as error:
        text = str(error) or type(error).__name__
        raise DataError(text if name in text else f"{name} cannot be read: {text}") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of an upright picture, by its header alone.

    Raises:
        DataError: not a picture, or one that cannot be opened.
    """
    with naming(str(path)), open_picture(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        width, height = image.size
    return (width, height) if turned else (height, width)


def stat_of(path: Path) -> list[Any]:
    """Path, bytes and time of change of a file, for :meth:`TestSet.inputs`."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def planes(pixels: NDArray[np.uint8]) -> Tensor:
    """A picture (H, W, 3) or (H, W) as (C, H, W) of its own memory."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


# Shards


@dataclass(frozen=True)
class Place:
    """Where a sample lies in shards: the shard, and its number in it."""

    url: str
    number: int
    key: str


@dataclass
class Shards:
    """The samples of shards, by number.

    Attributes:
        path: a folder of shards, a pattern or a URL.
        kinds: of which the samples may be.
        split: of a folder of shards; None for all of them.
        cache: folder in which shards from elsewhere are kept.

    Raises:
        UsageError: no such split, or no samples.
        DataError: a shard that is missing, damaged or of another kind.
    """

    path: str
    kinds: tuple[str, ...]
    split: str | None = "validation"
    cache: str | None = None

    def __post_init__(self) -> None:
        self.about: dict[str, Any] = {"path": self.path}
        self.licences: set[str] = set()
        source = Source(self.path)
        kept, held_out = open_source(source, self.kinds, Reading(tolerance=0, cache=self.cache))
        feeds = [feed for feed in (kept, held_out) if isinstance(feed, ShardFeed)]
        urls = [url for feed in feeds for url in feed.urls]
        digests: dict[str, str] = {}
        folder = local_path(self.path)
        if is_local(self.path) and folder.is_dir():
            index = Index.read(folder)
            splits = {split: shards for split, shards in index.splits.items() if shards}
            if self.split is not None and self.split not in splits:
                raise UsageError(
                    f"{folder} has no split {self.split!r}, it has {', '.join(splits)}; name one "
                    "of them as split, or null for all (what was trained on measures nothing)"
                )
            chosen = [s for split, s in splits.items() if self.split in (None, split)]
            entries = [entry for shards in chosen for entry in shards]
            urls = [str(folder / entry.name) for entry in entries]
            digests = {str(folder / entry.name): entry.sha256 for entry in entries}
            self.about |= {"split": self.split, "about": index.about}
        self.inputs = [self._input(url, digests.get(url)) for url in urls]
        self.places = []
        for url in urls:
            for number, record in enumerate(_records(url, self.cache)):
                record.check(*self.kinds)
                self.places.append(Place(url, number, record.key))
                self.licences.add(str(record.info().get("licence") or "not stated"))
        if not self.places:
            raise UsageError(f"{self.path} holds no samples")
        self.about |= {"samples": len(self.places), "licences": sorted(self.licences)}

    @staticmethod
    def _input(url: str, digest: str | None) -> list[Any]:
        if digest is not None:
            return [url, digest]
        return stat_of(local_path(url)) if is_local(url) else [url]

    def read(self, place: Place) -> Record:
        """The sample at a place."""
        return _records(place.url, self.cache)[place.number]


@lru_cache(maxsize=2)
def _records(url: str, cache: str | None) -> list[Record]:
    """All samples of a shard, undecoded; the last two shards stay in memory."""
    with naming(url), open_shard(url, cache) as stream:
        return list(read_records(stream, url))
