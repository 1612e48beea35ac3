"""What all test sets share: the sample, the interface, names, and reading without surprises."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from deep_image_compositing import registry
from deep_image_compositing.data.datasets import (
    FolderDataset,
    Reading,
    ShardDataset,
    open_source,
)
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import ShardItem, Source
from deep_image_compositing.data.shards import Index
from deep_image_compositing.data.tars import Shard, open_by_number
from deep_image_compositing.data.transfer import is_local, local_path
from deep_image_compositing.errors import CompositingError, DataError, UsageError
from deep_image_compositing.evaluation import measures
from deep_image_compositing.images import open_picture

if TYPE_CHECKING:
    from deep_image_compositing.composite import Composite
    from deep_image_compositing.metrics.lpips import LPIPS

Paths = str | Path | Sequence[str | Path]
"""One path or several; what a source of training data may be, as text."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One photograph to cut out and one background to set its subject into; uint8, on the CPU."""

    name: str  # unique in its set, fit for a file name
    foreground: Tensor  # (3, H, W), the photograph, old background and all
    background: Tensor  # (3, H, W), covering the frame; of any size where there is no truth
    # the given mask (1, H, W) by grade; None where the method's segmenter finds it
    masks: dict[str, Tensor | None] = field(default_factory=dict)
    composite: Tensor | None = None  # (3, H, W), the truth
    alpha: Tensor | None = None  # (1, H, W), the true opacity
    foreground_color: Tensor | None = None  # (3, H, W), true straight colour; 0 where alpha is
    old_background: Tensor | None = None  # (3, H, W), what the subject hides in the photograph

    def given(self, grade: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a method is given in a grade: photograph, background, and mask if there is one."""
        return self.foreground, self.background, self.masks[grade]

    def about(self, grade: str) -> dict[str, Any]:
        """What a record says of the sample itself, as JSON has it."""
        return {}

    def measure(self, grade: str, result: Composite, lpips: LPIPS | None) -> dict[str, float]:
        """The measures of what a method has made of it in a grade, but for the costs."""
        figures: dict[str, float] = {}
        if self.composite is not None:
            figures |= measures.measure_composite(
                result.composite_pixels, self.composite, self.alpha, self.foreground,
                self.background, self.old_background, self.foreground_color, lpips,
            )  # fmt: skip
        if self.alpha is not None:
            # No trimap was given, so nothing of the picture is known beforehand.
            figures |= measures.measure_alpha(result.cutout_alpha, self.alpha)
            if self.masks[grade] is None:
                figures |= measures.measure_mask(result.mask, self.alpha)
        return figures


class TestSet(ABC):
    """Samples by number; the same ones in any order and in any process."""

    __test__: ClassVar[bool] = False  # no test, whatever pytest makes of the name

    name: ClassVar[str]  # of the kind of set
    slots: ClassVar[tuple[str, ...]] = registry.SLOTS  # that a method fills to be measured
    grades: tuple[str, ...]  # of the given masks, in the order of tables

    @abstractmethod
    def names(self) -> list[str]:
        """The samples' names, in order, without making any sample."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; IndexError beyond the last, DataError where it cannot be read."""

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
        """SHA-256, in hex, of the description and of the files' sizes and times of change."""
        content = json.dumps([self.describe(), self.inputs()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


# Names and options


def unique_names(wanted: Iterable[str]) -> list[str]:
    """Names fit for files, which differ even without regard to case; what fits is kept."""
    used: set[str] = set()
    names = []
    for text in wanted:
        name = re.sub(r"[^\w.+-]+", "_", re.sub(r"[/\\]", "-", text)).lstrip(".-") or "_"
        if len(name) > 80:
            name = f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        unique, count = name, 1
        while unique.casefold() in used:
            count += 1
            unique = f"{name}-{count}"
        used.add(unique.casefold())
        names.append(unique)
    return names


def as_paths(paths: Paths | None, what: str) -> list[str]:
    """One path or several, as texts; ``UsageError`` for something that is none."""
    each: Any = [paths] if isinstance(paths, str | Path) else paths or []
    if not isinstance(each, list | tuple) or not all(
        isinstance(p, str | Path) and str(p) for p in each
    ):
        raise UsageError(f"{what} are one path or a list of paths, got {paths!r}")
    return [str(path) for path in each]


def check_grades(grades: Sequence[str] | str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen grades in the order of ``known``, all for None; UsageError for others or none."""
    if grades is None:
        return known
    wanted = [g.strip() for g in (grades.split(",") if isinstance(grades, str) else grades)]
    if not wanted or not set(wanted) <= set(known):
        raise UsageError(
            f"grades of masks are some of {', '.join(known)}, got {', '.join(wanted) or 'none'}"
        )
    return tuple(grade for grade in known if grade in wanted)


def check_count(option: str, value: int | None, least: int = 1) -> None:
    """UsageError for what is no whole number of at least ``least``, nor None."""
    if value is not None and not (isinstance(value, int) and value >= least):
        raise UsageError(f"{option} must be a whole number of at least {least}: {value!r}")


# Reading


def held_out(
    source: Source, kinds: tuple[str, ...], share: float | None
) -> tuple[Sequence[Pair], int]:
    """The pairs of a plain folder that ``share`` holds out, all for None; how many there are."""
    if share is not None and not isinstance(share, int | float):
        raise UsageError(f"a share that is held out is a number in [0, 1) or null, got {share!r}")
    source = replace(source, hold_out=share or 0.0)
    kept, others = open_source(source, kinds, Reading(tolerance=0))
    assert isinstance(kept, FolderDataset)
    pairs = others.pairs if isinstance(others, FolderDataset) else []
    return kept.pairs if share is None else pairs, len({*kept.pairs, *pairs})


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let errors of reading say what could not be read; those of Pillow become DataErrors."""
    try:
        yield
    except CompositingError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        text = str(error) or type(error).__name__
        raise DataError(text if name in text else f"{name} cannot be read: {text}") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of an upright picture, by its header alone; DataError if it is none."""
    with naming(str(path)), open_picture(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        width, height = image.size
    return (width, height) if turned else (height, width)


def stat_of(path: Path) -> list[Any]:
    """Path, bytes and time of change of a file, for ``TestSet.inputs``."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def planes(pixels: NDArray[np.uint8]) -> Tensor:
    """A picture (H, W, 3) or (H, W) as (C, H, W) of its own memory."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


# Shards


class ShardSample(NamedTuple):
    """A sample in a shard."""

    path: str  # of the source that names the shard
    url: str
    number: int
    key: str
    cache: str | None

    def open(self) -> ShardItem:
        """The sample, undecoded; DataError where the shard is not whole."""
        return ShardItem(Source(self.path), _open(self.url, self.cache)[self.number])


class Shards:
    """The samples of a kind, or of any of some, in a folder of shards, a pattern or a URL.

    ``split`` is one of a folder's, None for all; shards from elsewhere are kept in ``cache``.

    Raises:
        UsageError: no such split, or no samples.
        DataError: a shard that is missing, damaged or of another kind.
    """

    def __init__(
        self, path: str, kind: str | tuple[str, ...], split: str | None, cache: str | None
    ) -> None:
        kinds = (kind,) if isinstance(kind, str) else kind
        self.about: dict[str, Any] = {"path": path}
        found = open_source(Source(path), kinds, Reading(tolerance=0, cache=cache))
        folder = local_path(path)
        if is_local(path) and folder.is_dir():
            index = Index.read(folder)
            splits = {name: shards for name, shards in index.splits.items() if shards}
            if split is not None and split not in splits:
                raise UsageError(
                    f"{folder} has no split {split!r}, it has {', '.join(splits)}; name one of "
                    "them as split, or null for all (what was trained on measures nothing)"
                )
            entries = [e for name, es in splits.items() if split in (None, name) for e in es]
            self.inputs = [[str(folder / entry.name), entry.sha256] for entry in entries]
            self.about |= {"split": split, "about": index.about}
        else:
            sets = [dataset for dataset in found if isinstance(dataset, ShardDataset)]
            urls = [url for dataset in sets for url in dataset.urls]
            self.inputs = [stat_of(local_path(url)) if is_local(url) else [url] for url in urls]
        self.samples: list[ShardSample] = []
        licences = set()
        for url, *_ in self.inputs:
            shard = _open(url, cache)
            for number in range(len(shard)):
                record = shard[number]
                record.check(*kinds)
                self.samples.append(ShardSample(path, url, number, record.key, cache))
                licences.add(str(record.info().get("licence") or "not stated"))
        if not self.samples:
            raise UsageError(f"{path} holds no samples")
        self.about |= {"samples": len(self.samples), "licences": sorted(licences)}


def _open(url: str, cache: str | None) -> Shard:
    """A shard that is whole; DataError where it is not."""
    with naming(url):
        shard = open_by_number(url, cache)
    if shard.fault:
        raise DataError(shard.fault)
    return shard
