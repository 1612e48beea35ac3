"""Finds and describes the inputs of samples in plain folders and shards, and opens them lazily."""

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
from deep_image_compositing.data.items import FileItem, Item, Source
from deep_image_compositing.data.shards import Index
from deep_image_compositing.data.transfer import is_local, local_path
from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets.base import stat_of, unique_names


class Input(NamedTuple):
    """A photograph, matte, background or triplet."""

    name: str
    file: str  # the photograph, or the shard
    key: str  # in the shard; empty for plain folders
    open: Callable[[], Item]
    group: str = ""  # source, as shown in reports

    @property
    def where(self) -> str:
        """Its location, for messages and descriptions."""
        return f"{self.file}: {self.key}" if self.key else self.file


def named(inputs: Iterable[Input]) -> list[Input]:
    """The inputs with unique names that are fit for files."""
    inputs = list(inputs)
    names = unique_names(item.name for item in inputs)
    return [item._replace(name=name) for name, item in zip(names, inputs, strict=True)]


class Inputs:
    """Finds inputs, and collects the descriptions of their sources and files.

    ``split`` selects a split of folders of shards, None all; remote shards are cached in ``cache``.
    """

    def __init__(self, split: str | None, cache: str | None) -> None:
        self.split, self.cache = split, cache
        self.sources: list[dict[str, Any]] = []
        self.files: list[list[Any]] = []  # for ``TestSet``

    def add(
        self, source: Source, kinds: tuple[str, ...], share: float | None, **about: Any
    ) -> list[Input]:
        """The samples of some kinds in a source; of a plain folder, those that ``share`` holds out.

        Raises:
            UsageError: the source has no samples, or the share is not in [0, 1).
            DataError: as for ``add_shards``.
        """
        if is_shards(source.path):
            return self.add_shards(source.path, kinds, **about)
        parts = open_source(replace(source, hold_out=share or 0.0), kinds, Reading(tolerance=0))
        training, held_out = (p.pairs if isinstance(p, FolderDataset) else [] for p in parts)
        pairs = training if share is None else held_out
        about |= {"path": source.path, "samples": len({*training, *held_out}), "hold_out": share}
        about |= {"used": len(pairs)}
        about |= {} if source.doubt is None else {"doubt": source.doubt}
        return self.add_pairs(source, pairs, **about)

    def add_pairs(self, source: Source, pairs: Sequence[Pair], **about: Any) -> list[Input]:
        """The inputs for some pairs of a plain folder."""
        self.sources.append(about)
        inputs, root = [], local_path(source.path).expanduser()
        for pair in pairs:
            first, *_ = files = [f for f in (pair.composite, pair.image, pair.label) if f]
            self.files += map(stat_of, files)
            name = pair.image.relative_to(root).with_suffix("").as_posix().removeprefix("images/")
            inputs.append(Input(name, str(first), "", partial(FileItem, source, pair)))
        return inputs

    def add_shards(self, path: str, kinds: tuple[str, ...], **about: Any) -> list[Input]:
        """The samples of some kinds in a folder of shards, a pattern or a URL.

        Raises:
            UsageError: the split does not exist, or there are no samples.
            DataError: a shard is missing, damaged or of another kind.
        """
        reading = Reading(tolerance=0, cache=self.cache)
        opened = open_source(Source(path), kinds, reading)
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
            counts: list[int] | None = [entry.samples for entry in entries]
            about |= {"split": self.split, "about": index.about}
        else:
            urls = [u for part in opened if isinstance(part, ShardDataset) for u in part.urls]
            files = [stat_of(local_path(url)) if is_local(url) else [url] for url in urls]
            counts = None
        dataset = ShardDataset(Source(path), [url for url, *_ in files], kinds, counts, reading)
        inputs, licences = [], set()
        for number in range(len(dataset)):
            record = dataset[number].record  # DataError if its shard ends before it
            licences.add(str(record.info().get("licence") or "not stated"))
            item = partial(dataset.__getitem__, number)
            inputs.append(Input(record.key, record.shard, record.key, item))
        if not inputs:
            raise UsageError(f"{path} holds no samples")
        self.sources.append({**about, "samples": len(inputs), "licences": sorted(licences)})
        self.files += files
        return inputs
