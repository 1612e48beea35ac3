"""Map-style datasets of items: folders, shards read by number or streamed, mixtures by weight.

``open_source`` makes them of what a recipe names; ``dataset[i]`` is an undecoded item that any loop
may read. Shards from elsewhere that nobody caches are streamed while training.
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
_AT_LEAST = 100  # shards of which the tolerated share is reckoned
_BUFFER_BYTES = 128 * 2**20  # of samples of a stream that are held back


@dataclass(frozen=True)
class Reading:
    """How sources are read."""

    shuffle: int = 200  # samples of a stream that are held back to draw from, at most 128 MiB
    tolerance: float = 0.01  # share of shards that may be missing or damaged
    cache: str | None = None  # folder in which shards from elsewhere are kept


DEFAULT = Reading()


@dataclass
class FolderDataset(Dataset[Item]):
    """Samples of a plain folder; items raise ImageError or DataError where a file is broken."""

    source: Source
    pairs: Sequence[Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        return FileItem(self.source, self.pairs[index])

    def blocks(self) -> list[int]:
        """Sizes of the parts that are read as one; a folder has only itself."""
        return [len(self.pairs)]

    def nothing(self) -> Exception:
        """What to say when there is nothing to train on."""
        path, share, doubt = self.source.path, self.source.hold_out, self.source.doubt
        doubtful = "" if doubt is None else f" whose mask is less doubtful than {doubt:g}"
        return UsageError(
            f"nothing of {path} is left to train on: hold_out {share:g} keeps all its photographs"
            f"{doubtful} for validation, if there are any; add more, or train on all with "
            f"{{path: {path}, hold_out: 0}}"
        )


@dataclass
class ShardDataset(Dataset[Item]):
    """Samples of shards, in any order: each is read where it lies."""

    source: Source
    urls: Sequence[str]
    kinds: tuple[str, ...]  # what every sample must be one of
    counts: list[int] | None = None  # samples in each shard; None when they must be counted first
    reading: Reading = DEFAULT

    def blocks(self) -> list[int]:
        """Samples of each shard: as its index says, otherwise by reading all headers once.

        What is missing or cut short counts as if it were like the others, so that it is met, named
        and reckoned when its samples are drawn; DataError if there is no sample in any of them.
        """
        if self.counts is None:
            _log.info("counting the samples of %d shards of %s", len(self.urls), self.source.path)
            found = [self._count(url) for url in self.urls]
            most = max((count for count, _ in found), default=0)
            if not most:
                reason = next((fault for _, fault in found if fault), "")
                raise DataError(f"{self.source.path} holds no sample that can be used: {reason}")
            whole = [count for count, fault in found if not fault] or [most]
            usual = round(sum(whole) / len(whole))
            self.counts = [max(count + 1, usual) if fault else count for count, fault in found]
        return self.counts

    def _count(self, url: str) -> tuple[int, str]:
        """How many samples there are in a shard, and why no more if it is damaged."""
        try:
            shard = open_by_number(url, self.reading.cache)
        except UNREADABLE as error:
            return 0, str(error)
        return len(shard), shard.fault or ("" if len(shard) else f"{url} is empty")

    def __len__(self) -> int:
        return sum(self.blocks())

    def __getitem__(self, index: int) -> ShardItem:
        number, place = _find(self._starts, index, self.source.path)
        record = open_by_number(self.urls[number], self.reading.cache)[place]
        record.check(*self.kinds)
        return ShardItem(self.source, record)

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(self.blocks())]

    def nothing(self) -> Exception:
        return DataError(f"{self.source.path} holds no sample that can be used")


class StreamedDataset(ShardDataset):
    """Shards as one endless stream, by webdataset: any index is the next sample.

    Each loader process draws shards with replacement and shuffles their samples. A stream cannot
    be wound forward: a resumed run sees other samples. To the order of samples it is one sample.
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
        records = self._records(each["url"] for each in urls)
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


def _shuffle(records: Iterator[Record], rng: np.random.Generator, most: int) -> Iterator[Record]:
    """Each time any of the next ``most`` records, or of fewer that hold 128 MiB together."""
    held: list[tuple[int, Record]] = []
    total = 0
    for record in records:
        held.append((sum(map(len, record.fields.values())), record))
        total += held[-1][0]
        while len(held) > most or (total > _BUFFER_BYTES and len(held) > 1):
            chosen = int(rng.integers(len(held)))
            held[chosen], held[-1] = held[-1], held[chosen]
            size, drawn = held.pop()
            total -= size
            yield drawn


AnyDataset = FolderDataset | ShardDataset


@dataclass
class Mixture(Dataset[Item]):
    """Several datasets in a row, each drawn from by its source's weight when training."""

    datasets: Sequence[AnyDataset] = field(default_factory=list)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Item:
        part, place = _find(self.starts, index, "the mixture")
        return self.datasets[part][place]

    def __add__(self, other: Mixture) -> Mixture:  # type: ignore[override]
        return Mixture([*self.datasets, *other.datasets])

    @functools.cached_property
    def starts(self) -> list[int]:
        """Index of the first sample of each dataset, and behind the last one."""
        return [0, *itertools.accumulate(len(dataset) for dataset in self.datasets)]

    def part(self, index: int) -> int:
        """Which dataset sample ``index`` belongs to."""
        return _find(self.starts, index, "the mixture")[0]

    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """How much of what is drawn comes of each dataset, in sum 1.

        UsageError or DataError where all are 0, or one has nothing to draw.
        """
        weights = np.array([dataset.source.weight for dataset in self.datasets], np.float64)
        if not weights.sum() > 0:
            names = ", ".join(dataset.source.path for dataset in self.datasets) or "no source"
            raise UsageError(
                f"nothing can be drawn of {names}: the weights must not all be 0; give one more"
            )
        for dataset in itertools.compress(self.datasets, weights):
            if not len(dataset):
                raise dataset.nothing()
        return weights / weights.sum()


def stream_remote(mixture: Mixture, *seed: int) -> Mixture:
    """The mixture, in which shards from elsewhere are streamed unless they are cached."""

    def streamed(number: int, dataset: AnyDataset) -> AnyDataset:
        if not isinstance(dataset, ShardDataset) or all(map(is_local, dataset.urls)):
            return dataset
        cached = dataset.reading.cache is not None
        return dataset if cached else StreamedDataset(dataset, *seed, number)

    return Mixture(list(itertools.starmap(streamed, enumerate(mixture.datasets))))


def _find(starts: Sequence[int], index: int, name: str) -> tuple[int, int]:
    """In which part sample ``index`` lies, and its number there."""
    if not 0 <= index < starts[-1]:
        raise IndexError(f"{name} has {starts[-1]} samples, not sample {index}")
    part = bisect.bisect_right(starts, index) - 1
    return part, index - starts[part]


# From sources to datasets


def is_shards(path: str) -> bool:
    """Whether a source's path names shards rather than a folder."""
    return any(
        not is_local(part)
        or part.rstrip("/").endswith((".tar", ".tar.gz", ".tgz"))
        or (local_path(part) / INDEX).is_file()
        for part in path.split("::")
    )


def open_source(
    source: Source, kinds: tuple[str, ...], reading: Reading = DEFAULT
) -> tuple[AnyDataset, AnyDataset | None]:
    """What a source holds of ``kinds``, for training and, held out, for validation.

    A folder of shards holds out the split ``validation`` that its index lists; a plain folder the
    share ``hold_out``, by the hash of the names; shards by pattern nothing. No photograph is on
    both sides: where a small folder is held out as a whole, nothing is left to train on.

    Raises:
        UsageError: nothing at the path, or shards of another kind.
        DataError: an index that cannot be read; too many shards that are missing or cut short.
    """
    if not is_shards(source.path):
        return _open_folder(source, kinds)
    if not is_local(source.path) or not local_path(source.path).is_dir():
        return _open_shards(source, expand(source.path), kinds, reading), None
    folder = local_path(source.path)
    index = Index.read(folder)
    if index.kind not in kinds:
        raise UsageError(f"{folder} holds shards of {index.kind}, wanted: {' or '.join(kinds)}")
    found = {
        split: _open_shards(source, [str(folder / s.name) for s in shards], kinds, reading)
        for split, shards in index.splits.items()
        if shards
    }
    if not found:
        raise UsageError(f"{folder} holds no shards")
    train = found.pop("train" if "train" in found else next(iter(found)))
    return train, found.get("validation")


def open_all(
    sources: Sequence[Source], kinds: tuple[str, ...], reading: Reading = DEFAULT
) -> tuple[Mixture, Mixture]:
    """What sources hold for training, and what they hold out; see ``open_source``."""
    pairs = [open_source(source, kinds, reading) for source in sources]
    held_out = [dataset for _, dataset in pairs if dataset is not None]
    return Mixture([kept for kept, _ in pairs]), Mixture(held_out)


def open_held_out(source: Source, kinds: tuple[str, ...], reading: Reading = DEFAULT) -> AnyDataset:
    """What a source that is named for validation holds: all of a plain folder or of a pattern.

    Of a folder of shards only the split ``validation`` where there is one.
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
    parts: dict[bool, list[Pair]] = {False: [], True: []}
    for pair in pairs:
        parts[pair.held_out(source.hold_out, source.sequences)].append(pair)
    held_out = FolderDataset(source, parts[True]) if parts[True] else None
    return FolderDataset(source, parts[False]), held_out


def _find_composites(root: Path) -> list[Pair]:
    """Photographs, masks and composites in ``root``, without those that are for tests only."""
    finders = [layouts.get("harmonization", name).find for name in ("iharmony4", "folders")]
    found = (pair for find in finders if root.is_dir() for pair in find(root))
    return sorted((p for p in found if p.split != "test"), key=lambda pair: str(pair.composite))


def _open_shards(
    source: Source, urls: Sequence[str], kinds: tuple[str, ...], reading: Reading
) -> ShardDataset:
    """Shards, with the counts of indexes beside them; DataError if too many are missing or cut."""
    known, bad = _entries(urls), []
    for path, url in ((local_path(url), url) for url in urls if is_local(url)):
        if not path.is_file():
            bad.append(f"{url} does not exist")
        elif url in known and path.stat().st_size != known[url].bytes:
            size, said = path.stat().st_size, known[url].bytes
            bad.append(f"{url} has {size} bytes, its index says {said}")
    if len(bad) > reading.tolerance * max(len(urls), _AT_LEAST):
        raise DataError(
            f"{len(bad)} of {len(urls)} shards of {source.path} are missing or damaged, more than "
            f"the tolerated share of {reading.tolerance:g}; the first: {bad[0]}"
        )
    counts = [known[url].samples for url in urls] if len(known) == len(set(urls)) else None
    return ShardDataset(source, urls, kinds, counts, reading)


def _entries(urls: Sequence[str]) -> dict[str, ShardEntry]:
    """What indexes beside shards on disk say of them, by URL."""
    known: dict[Path, ShardEntry] = {}
    for folder in {local_path(url).parent for url in urls if is_local(url)}:
        try:
            known |= {folder / shard.name: shard for shard in Index.read(folder).shards}
        except DataError:
            continue  # there is none, or it is of something else
    return {url: known[path] for url in urls if (path := local_path(url)) in known}
