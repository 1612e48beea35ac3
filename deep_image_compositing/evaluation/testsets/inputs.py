"""What samples are made of: found in plain folders and shards, described, opened when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from deep_image_compositing.data.datasets import (
    FolderDataset,
    Reading,
    ShardDataset,
    is_shards,
    open_source,
)
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import FileItem, Item, ShardItem, Source
from deep_image_compositing.data.shards import Index
from deep_image_compositing.data.tars import Shard, open_by_number
from deep_image_compositing.data.transfer import is_local, local_path
from deep_image_compositing.errors import DataError, UsageError
from deep_image_compositing.evaluation.testsets.base import naming, stat_of, unique_names


class Input(NamedTuple):
    """A photograph, a matte, a background or a triplet."""

    name: str
    file: str  # its photograph, or its shard
    key: str  # in the shard; empty where it lies in a plain folder
    open: Callable[[], Item]
    group: str = ""  # where it comes from, in the report's words

    @property
    def where(self) -> str:
        """What messages and descriptions call it."""
        return f"{self.file}: {self.key}" if self.key else self.file


def named(inputs: Iterable[Input]) -> list[Input]:
    """The same under names that differ and are fit for files."""
    inputs = list(inputs)
    names = unique_names(each.name for each in inputs)
    return [each._replace(name=name) for name, each in zip(names, inputs, strict=True)]


class Inputs:
    """Finds inputs, and keeps what a description says of all their sources and files.

    ``split`` is one of a folder of shards, None for all; shards from elsewhere are kept in
    ``cache``.
    """

    def __init__(self, split: str | None, cache: str | None) -> None:
        self.split, self.cache = split, cache
        self.sources: list[dict[str, Any]] = []
        self.files: list[list[Any]] = []  # as ``TestSet`` takes them

    def add(
        self, source: Source, kinds: tuple[str, ...], share: float | None, **about: Any
    ) -> list[Input]:
        """What there is of some kinds in a source; of a plain folder, what ``share`` holds out.

        Raises:
            UsageError: nothing there, or a share that is none in [0, 1).
            DataError: as ``add_shards``.
        """
        if is_shards(source.path):
            return self.add_shards(source.path, kinds, **about)
        parts = open_source(replace(source, hold_out=share or 0.0), kinds, Reading(tolerance=0))
        kept, out = (part.pairs if isinstance(part, FolderDataset) else [] for part in parts)
        chosen = kept if share is None else out
        about |= {"path": source.path, "samples": len({*kept, *out}), "hold_out": share}
        about |= {"used": len(chosen)}
        about |= {} if source.doubt is None else {"doubt": source.doubt}
        return self.add_pairs(source, chosen, **about)

    def add_pairs(self, source: Source, pairs: Sequence[Pair], **about: Any) -> list[Input]:
        """Some pairs of a plain folder."""
        self.sources.append(about)
        found, root = [], local_path(source.path).expanduser()
        for pair in pairs:
            first, *_ = files = [f for f in (pair.composite, pair.image, pair.label) if f]
            self.files += map(stat_of, files)
            name = pair.image.relative_to(root).with_suffix("").as_posix().removeprefix("images/")
            found.append(Input(name, str(first), "", partial(FileItem, source, pair)))
        return found

    def add_shards(self, path: str, kinds: tuple[str, ...], **about: Any) -> list[Input]:
        """The samples of some kinds in a folder of shards, a pattern or a URL.

        Raises:
            UsageError: no such split, or no samples.
            DataError: a shard that is missing, damaged or of another kind.
        """
        opened = open_source(Source(path), kinds, Reading(tolerance=0, cache=self.cache))
        folder = local_path(path)
        about["path"] = path
        if is_local(path) and folder.is_dir():
            index = Index.read(folder)
            splits = {name: shards for name, shards in index.splits.items() if shards}
            if self.split is not None and self.split not in splits:
                raise UsageError(
                    f"{folder} has no split {self.split!r}, it has {', '.join(splits)}; name one "
                    "of them as split, or null for all (what was trained on measures nothing)"
                )
            entries = [e for name, es in splits.items() if self.split in (None, name) for e in es]
            files = [[str(folder / entry.name), entry.sha256] for entry in entries]
            about |= {"split": self.split, "about": index.about}
        else:
            urls = [u for part in opened if isinstance(part, ShardDataset) for u in part.urls]
            files = [stat_of(local_path(url)) if is_local(url) else [url] for url in urls]
        found, licences = [], set()
        for url, *_ in files:
            shard = _whole(url, self.cache)
            for number in range(len(shard)):
                record = shard[number]
                record.check(*kinds)
                licences.add(str(record.info().get("licence") or "not stated"))
                item = partial(_read, path, url, number, self.cache)
                found.append(Input(record.key, url, record.key, item))
        if not found:
            raise UsageError(f"{path} holds no samples")
        self.sources.append({**about, "samples": len(found), "licences": sorted(licences)})
        self.files += files
        return found


def _read(path: str, url: str, number: int, cache: str | None) -> ShardItem:
    return ShardItem(Source(path), _whole(url, cache)[number])


def _whole(url: str, cache: str | None) -> Shard:
    """A shard; DataError where it is not whole."""
    with naming(url):
        shard = open_by_number(url, cache)
    if shard.fault:
        raise DataError(shard.fault)
    return shard
