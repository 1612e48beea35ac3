"""Map-style datasets of items: plain folders, indexed or streamed shards, weighted mixtures.

``open_source`` builds them from the sources in a recipe; ``dataset[i]`` is an undecoded ``Item``.
Remote shards without a cache are streamed during training.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from deep_image_compositing.data import folders, layouts
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import FileItem, Item, ShardItem, Source
from deep_image_compositing.data.shards import INDEX, Index, Record, ShardEntry
from deep_image_compositing.data.tars import UNREADABLE, Tolerance, open_by_number, read_records
from deep_image_compositing.data.transfer import expand, is_local, local_path, open_shard
from deep_image_compositing.errors import DataError, UsageError

_log = logging.getLogger("deep_image_compositing")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MIN_SHARDS = 100  # the tolerated share is computed of at least this many shards
_BUFFER_BYTES = 128 * 2**20  # limit of a stream's shuffle buffer


@dataclass(frozen=True)
class Reading:
    """How sources are read."""

    shuffle: int = 200  # samples in a stream's shuffle buffer, at most 128 MiB
    tolerance: float = 0.01  # share of shards that may be missing or damaged
    cache: str | None = None  # folder for copies of remote shards


DEFAULT = Reading()


@dataclass
class FolderDataset(Dataset[Item]):
    """Samples of a plain folder; items raise ImageError or DataError for broken files."""

    source: Source
    pairs: Sequence[Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        return FileItem(self.source, self.pairs[index])

    def blocks(self) -> list[int]:
        """Samples in each shard; a folder counts as one shard."""
        return [len(self.pairs)]

    def empty_error(self) -> Exception:
        """The error to raise when there is nothing to train on."""
        path, share, doubt = self.source.path, self.source.hold_out, self.source.doubt
        doubtful = "" if doubt is None else f" whose mask is less doubtful than {doubt:g}"
        return UsageError(
            f"nothing of {path} is left to train on: hold_out {share:g} keeps all its photographs"
            f"{doubtful} for validation, if there are any; add more, or train on all with "
            f"{{path: {path}, hold_out: 0}}"
        )


@dataclass
class ShardDataset(Dataset[Item]):
    """Samples of shards, read by random access."""

    source: Source
    urls: Sequence[str]
    kinds: tuple[str, ...]  # accepted kinds of samples
    counts: list[int] | None = None  # samples in each shard; None to count them on first use
    reading: Reading = DEFAULT

    def blocks(self) -> list[int]:
        """Samples in each shard: from the index, otherwise by reading all headers once.

        A missing or truncated shard counts as an average one, so that drawing its samples reports
        it and counts towards the tolerance. ``DataError`` if no shard has any sample.
        """
        if self.counts is None:
            _log.info("counting the samples of %d shards of %s", len(self.urls), self.source.path)
            counts = [self._count(url) for url in self.urls]
            largest = max((count for count, _ in counts), default=0)
            if not largest:
                reason = next((fault for _, fault in counts if fault), "")
                raise DataError(f"{self.source.path} holds no sample that can be used: {reason}")
            intact = [count for count, fault in counts if not fault] or [largest]
            average = round(sum(intact) / len(intact))
            self.counts = [max(count + 1, average) if fault else count for count, fault in counts]
        return self.counts

    def _count(self, url: str) -> tuple[int, str]:
        """Readable samples in a shard, and what is wrong with it, if anything."""
        try:
            shard = open_by_number(url, self.reading.cache)
        except UNREADABLE as error:
            return 0, str(error)
        return len(shard), shard.fault or ("" if len(shard) else f"{url} is empty")

    def __len__(self) -> int:
        return sum(self.blocks())

    def __getitem__(self, index: int) -> ShardItem:
        shard, position = _locate(self._starts, index, self.source.path)
        record = open_by_number(self.urls[shard], self.reading.cache)[position]
        record.check(*self.kinds)
        return ShardItem(self.source, record)

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(self.blocks())]

    def empty_error(self) -> Exception:
        return DataError(f"{self.source.path} holds no sample that can be used")


class StreamedDataset(ShardDataset):
    """Shards as one endless stream: ``dataset[i]`` is the next sample, whatever ``i``.

    Each loader process draws shards with replacement and shuffles their samples. Streams cannot
    seek, so a resumed run sees other samples. The length is 1.
    """

    def __init__(self, shards: ShardDataset, *seed: int) -> None:
        super().__init__(shards.source, shards.urls, shards.kinds, [1], shards.reading)
        self.seed = seed
        self._tolerance = Tolerance(f"shards of {self.source.path}", self.reading.tolerance)
        self._items: Iterator[ShardItem] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_items": None}

    def __getitem__(self, index: int) -> ShardItem:
        if self._items is None:
            self._items = self._stream()
        return next(self._items)

    def _stream(self) -> Iterator[ShardItem]:
        import webdataset

        info = get_worker_info()
        seed = np.random.SeedSequence([*self.seed, info.id if info else 0]).generate_state(2)
        urls = webdataset.ResampledShards(
            list(self.urls), seed=int(seed[0]), worker_seed=lambda: 0, deterministic=True
        )
        records = self._records(entry["url"] for entry in urls)
        shuffled = _shuffle(records, np.random.default_rng(seed), self.reading.shuffle)
        return (ShardItem(self.source, record) for record in shuffled)

    def _records(self, urls: Iterator[str]) -> Iterator[Record]:
        for url in urls:
            empty = True
            try:
                with open_shard(url) as stream:
                    for record in read_records(stream, url):
                        record.check(*self.kinds)
                        empty = False
                        yield record
                if empty:
                    raise DataError(f"{url} holds no sample that can be used")
            except UNREADABLE as error:
                self._tolerance.failed(error)
            else:
                self._tolerance.passed()


def _shuffle(records: Iterator[Record], rng: np.random.Generator, limit: int) -> Iterator[Record]:
    """Shuffle through a buffer of at most ``limit`` records and ``_BUFFER_BYTES``."""
    buffer: list[tuple[int, Record]] = []
    total = 0
    for record in records:
        buffer.append((sum(map(len, record.fields.values())), record))
        total += buffer[-1][0]
        while len(buffer) > limit or (total > _BUFFER_BYTES and len(buffer) > 1):
            i = int(rng.integers(len(buffer)))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            size, drawn = buffer.pop()
            total -= size
            yield drawn


AnyDataset = FolderDataset | ShardDataset


@dataclass
class Mixture(Dataset[Item]):
    """Several datasets concatenated; training draws from each by the weight of its source."""

    datasets: Sequence[AnyDataset] = field(default_factory=list)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Item:
        part, position = _locate(self.starts, index, "the mixture")
        return self.datasets[part][position]

    def __add__(self, other: Mixture) -> Mixture:  # type: ignore[override]
        return Mixture([*self.datasets, *other.datasets])

    @functools.cached_property
    def starts(self) -> list[int]:
        """Index of the first sample of each dataset, and the total length."""
        return [0, *itertools.accumulate(len(dataset) for dataset in self.datasets)]

    def part(self, index: int) -> int:
        """Number of the dataset that sample ``index`` belongs to."""
        return _locate(self.starts, index, "the mixture")[0]

    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Share of the draws for each dataset, summing to 1.

        UsageError or DataError if all weights are 0, or a dataset with a weight is empty.
        """
        weights = np.array([dataset.source.weight for dataset in self.datasets], np.float64)
        if not weights.sum() > 0:
            names = ", ".join(dataset.source.path for dataset in self.datasets) or "no source"
            raise UsageError(
                f"nothing can be drawn of {names}: the weights must not all be 0; give one more"
            )
        for dataset in itertools.compress(self.datasets, weights):
            if not len(dataset):
                raise dataset.empty_error()
        return weights / weights.sum()


def stream_remote(mixture: Mixture, *seed: int) -> Mixture:
    """The mixture with remote shards streamed, unless they are cached."""
    datasets = list(mixture.datasets)
    for number, dataset in enumerate(datasets):
        if not isinstance(dataset, ShardDataset) or dataset.reading.cache is not None:
            continue
        if not all(map(is_local, dataset.urls)):
            datasets[number] = StreamedDataset(dataset, *seed, number)
    return Mixture(datasets)


def _locate(starts: Sequence[int], index: int, name: str) -> tuple[int, int]:
    """The part that holds sample ``index``, and its position there."""
    if not 0 <= index < starts[-1]:
        raise IndexError(f"{name} has {starts[-1]} samples, not sample {index}")
    part = bisect.bisect_right(starts, index) - 1
    return part, index - starts[part]


# From sources to datasets


def is_shards(path: str) -> bool:
    """Whether a source's path names shards rather than a folder."""
    return any(
        not is_local(part)
        or part.rstrip("/").endswith(_TARS)
        or (local_path(part) / INDEX).is_file()
        for part in path.split("::")
    )


def open_source(
    source: Source, kinds: tuple[str, ...], reading: Reading = DEFAULT
) -> tuple[AnyDataset, AnyDataset | None]:
    """Open a source as datasets for training and for validation (None if nothing is held out).

    A folder of shards holds out its split ``validation``; a plain folder the share ``hold_out``,
    by the hash of the names; shards by pattern hold out nothing. The two never share a photograph,
    so a small folder may have nothing left to train on.

    Raises:
        UsageError: nothing at the path, or shards of a kind that is not in ``kinds``.
        DataError: an index that cannot be read; too many missing or truncated shards.
    """
    if not is_shards(source.path):
        return _open_folder(source, kinds)
    if not is_local(source.path) or not local_path(source.path).is_dir():
        return _open_shards(source, expand(source.path), kinds, reading), None
    folder = local_path(source.path)
    index = Index.read(folder)
    if index.kind not in kinds:
        raise UsageError(f"{folder} holds shards of {index.kind}, wanted: {' or '.join(kinds)}")
    splits = {
        split: _open_shards(source, [str(folder / s.name) for s in shards], kinds, reading)
        for split, shards in index.splits.items()
        if shards
    }
    if not splits:
        raise UsageError(f"{folder} holds no shards")
    train = splits.pop("train" if "train" in splits else next(iter(splits)))
    return train, splits.get("validation")


def open_all(
    sources: Sequence[Source], kinds: tuple[str, ...], reading: Reading = DEFAULT
) -> tuple[Mixture, Mixture]:
    """Mixtures for training and for validation of several sources; see ``open_source``."""
    opened = [open_source(source, kinds, reading) for source in sources]
    held_out = [dataset for _, dataset in opened if dataset is not None]
    return Mixture([train for train, _ in opened]), Mixture(held_out)


def open_held_out(source: Source, kinds: tuple[str, ...], reading: Reading = DEFAULT) -> AnyDataset:
    """Open a source that is used for validation only: all of a plain folder or of a pattern.

    Of a folder of shards only the split ``validation``, if it has one.
    """
    train, held_out = open_source(replace(source, hold_out=0.0), kinds, reading)
    return held_out or train


def _open_folder(
    source: Source, kinds: tuple[str, ...]
) -> tuple[FolderDataset, FolderDataset | None]:
    root = local_path(source.path)
    if "backgrounds" in kinds:
        pairs = [Pair(path) for path in folders.find_images(root)]
    elif "harmonization" not in kinds or not (pairs := _find_composites(root)):
        pairs = folders.find_pairs(root)
    if source.doubt is not None:
        pairs = folders.drop_doubtful(pairs, root, source.doubt)
    masks = [pair.label for pair in pairs if pair.label and pair.label.stem.endswith(".mask")]
    if masks and not {"segmentation", "backgrounds"} & set(kinds):
        raise UsageError(
            f"{source.path} holds masks ({masks[0].name}), but mattes are needed: photographs "
            "with soft alphas, as NAME.alpha.png, or cut-outs"
        )
    train: list[Pair] = []
    held_out: list[Pair] = []
    for pair in pairs:
        part = held_out if pair.held_out(source.hold_out, source.sequences) else train
        part.append(pair)
    return FolderDataset(source, train), FolderDataset(source, held_out) if held_out else None


def _find_composites(root: Path) -> list[Pair]:
    """Photographs, masks and composites in ``root``, without the split ``test``."""
    finders = [layouts.get("harmonization", name).find for name in ("iharmony4", "folders")]
    pairs = (pair for find in finders if root.is_dir() for pair in find(root))
    return sorted((p for p in pairs if p.split != "test"), key=lambda pair: str(pair.composite))


def _open_shards(
    source: Source, urls: Sequence[str], kinds: tuple[str, ...], reading: Reading
) -> ShardDataset:
    """Open shards, counted by the index beside them; DataError if too many are bad."""
    entries, bad = _entries(urls), []
    for url in filter(is_local, urls):
        if not (path := local_path(url)).is_file():
            bad.append(f"{url} does not exist")
        elif url in entries and (size := path.stat().st_size) != entries[url].bytes:
            bad.append(f"{url} has {size} bytes, its index says {entries[url].bytes}")
    if len(bad) > reading.tolerance * max(len(urls), _MIN_SHARDS):
        raise DataError(
            f"{len(bad)} of {len(urls)} shards of {source.path} are missing or damaged, more than "
            f"the tolerated share of {reading.tolerance:g}; the first: {bad[0]}"
        )
    counts = [entries[url].samples for url in urls] if len(entries) == len(set(urls)) else None
    return ShardDataset(source, urls, kinds, counts, reading)


def _entries(urls: Sequence[str]) -> dict[str, ShardEntry]:
    """The index entries of local shards, by URL."""
    entries: dict[Path, ShardEntry] = {}
    for folder in {local_path(url).parent for url in urls if is_local(url)}:
        try:
            entries |= {folder / shard.name: shard for shard in Index.read(folder).shards}
        except DataError:
            continue  # there is no index of shards
    return {url: entries[path] for url in urls if (path := local_path(url)) in entries}
