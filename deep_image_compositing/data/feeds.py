"""Feeds: where samples come from, endlessly for training and each exactly once for evaluation.

A feed draws from shards or from a plain folder; a :class:`Mix` draws from several by weight. What
cannot be read is named, counted and passed over until it is more than a stated share. The loader
processes of :mod:`~deep_image_compositing.data.stream` call this.
"""

from __future__ import annotations

import itertools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deep_image_compositing.data import folders
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import UNREADABLE, FileItem, Item, ShardItem, Source
from deep_image_compositing.data.shards import INDEX, Index, Record, read_records
from deep_image_compositing.data.transfer import expand, is_local, local_path, open_shard
from deep_image_compositing.errors import DataError, UsageError

_log = logging.getLogger("deep_image_compositing")
_GRACE = 100
_BUFFER_BYTES = 128 * 2**20


class TooManyError(DataError):
    """More could not be read than is tolerated: not to be passed over."""


@dataclass
class Tolerance:
    """How much of something may be unreadable before that is an error.

    Attributes:
        what: what is counted, in the plural, for messages.
        share: part that may be bad, reckoned of at least 100. What is drawn at random meets more
            than its share now and then, so three standard deviations more are let pass: at 0.01,
            four among the first hundred.
    """

    what: str
    share: float = 0.01
    seen: int = 0
    bad: int = 0
    _in_a_row: int = 0

    def passed(self) -> None:
        """Count a good one."""
        self.seen += 1
        self._in_a_row = 0

    def failed(self, name: str, reason: object) -> None:
        """Count a bad one, and say so.

        Raises:
            TooManyError: when there are now too many, or nothing but bad ones for a long while.
        """
        self.seen += 1
        self.bad += 1
        self._in_a_row += 1
        text = str(reason) or type(reason).__name__
        said = text if name in text else f"{name}: {text}"
        expected = self.share * max(self.seen, _GRACE)
        if self.bad > expected + 3 * math.sqrt(expected) or self._in_a_row > _GRACE:
            raise TooManyError(
                f"{self.bad} of {self.seen} {self.what} could not be read, more than the "
                f"tolerated share of {self.share:g}; the last one: {said}"
            )
        _log.warning("passed over (%d of %d %s): %s", self.bad, self.seen, self.what, said)


class Feed(ABC):
    """Samples of one source."""

    source: Source

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Iterator[Item]:
        """Samples without end, for training."""

    @abstractmethod
    def __len__(self) -> int:
        """How many samples :meth:`read` counts."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Item | None]:
        """Samples ``start`` to ``stop`` in order; None for one that cannot be had."""

    def shards(self) -> int | None:
        """How many shards there are to share among processes; None when there is no such limit."""
        return None

    def check(self) -> None:  # noqa: B027  (shards are checked when they are opened)
        """Raise :class:`UsageError` where it is known that there is nothing to draw."""


@dataclass
class FolderFeed(Feed):
    """Samples of a plain folder."""

    source: Source
    pairs: Sequence[Pair]

    def check(self) -> None:
        """Raise :class:`UsageError` when there is nothing to draw."""
        if not self.pairs:
            path, share = self.source.path, self.source.hold_out
            raise UsageError(
                f"nothing of {path} is left to train on: hold_out {share:g} keeps all its "
                f"photographs for validation; add more, or train on all with "
                f"{{path: {path}, hold_out: 0}}"
            )

    def draw(self, rng: np.random.Generator) -> Iterator[Item]:
        self.check()
        while True:
            yield FileItem(self.source, self.pairs[int(rng.integers(len(self.pairs)))])

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, start: int, stop: int) -> Iterator[Item | None]:
        for pair in self.pairs[start:stop]:
            yield FileItem(self.source, pair)


@dataclass
class ShardFeed(Feed):
    """Samples of shards.

    Attributes:
        source: where they come from.
        urls: the shards.
        kind: what every sample must be, see :data:`~deep_image_compositing.data.shards.KINDS`;
            several kinds may be allowed.
        counts: samples in each shard; None when they must be counted before an evaluation.
        shuffle: samples that are held back to draw from, at most 128 MiB of them.
        tolerance: share of shards, and of samples, that may be unreadable.
        cache: folder in which shards from elsewhere are kept.
    """

    source: Source
    urls: Sequence[str]
    kinds: tuple[str, ...]
    counts: list[int] | None = None
    shuffle: int = 200
    tolerance: float = 0.01
    cache: str | None = None
    _shards: Tolerance = field(init=False, repr=False)
    _samples: Tolerance = field(init=False, repr=False)
    _lengths: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._shards = Tolerance(f"shards of {self.source.path}", self.tolerance)
        self._samples = Tolerance(f"samples of {self.source.path}", self.tolerance)

    def shards(self) -> int | None:
        return len(self.urls)

    def draw(self, rng: np.random.Generator) -> Iterator[Item]:
        held: list[Record] = []
        size = 0
        for record in self._resampled(rng):
            held.append(record)
            size += _size(record)
            while len(held) > self.shuffle or (size > _BUFFER_BYTES and len(held) > 1):
                chosen = int(rng.integers(len(held)))
                held[chosen], held[-1] = held[-1], held[chosen]
                drawn = held.pop()
                size -= _size(drawn)
                yield ShardItem(self.source, drawn)

    def _resampled(self, rng: np.random.Generator) -> Iterator[Record]:
        """The records of one shard after another; of the first only those from a random one on.

        Most epochs are shorter than a shard. If each began where a shard begins, the samples at
        its end would hardly ever be drawn; this way all are equally likely.
        """
        position = rng.random()
        shard = int(rng.choice(len(self.urls), p=self._shares()))
        while True:
            url = self.urls[shard]
            empty = True
            try:
                skipped = int(position * self._length(shard)) if position else 0
                for record in self._records(url, skipped):
                    empty = False
                    yield record
                if empty:
                    raise DataError(f"{url} holds no sample that can be used")
            except TooManyError:
                raise
            except UNREADABLE as error:
                self._shards.failed(url, error)
            else:
                self._shards.passed()
            position = 0.0
            shard = int(rng.integers(len(self.urls)))

    def _shares(self) -> NDArray[np.float64] | None:
        """How much of all samples each shard holds, by bytes where they are not counted.

        None where nothing is known: shards from elsewhere are taken to be of one size.
        """
        sizes: Sequence[int] = self.counts or []
        if self.counts is None and all(map(is_local, self.urls)):
            paths = [local_path(url) for url in self.urls]
            sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        return np.divide(sizes, sum(sizes)) if sum(sizes) else None

    def _length(self, shard: int) -> int:
        """Samples of a shard, which is read for it once where no index says."""
        if self.counts is not None:
            return self.counts[shard]
        if shard not in self._lengths:
            self._lengths[shard] = max(self._numbers(shard), default=0)
        return self._lengths[shard]

    def _numbers(self, shard: int) -> Iterator[int]:
        """1, 2, ... for each sample of a shard, read for nothing else."""
        with open_shard(self.urls[shard], self.cache) as stream:
            for number, _ in enumerate(read_records(stream, self.urls[shard]), 1):
                yield number

    def _records(self, url: str, skipped: int) -> Iterator[Record]:
        """The good samples of one shard after the first few; bad ones are counted."""
        with open_shard(url, self.cache) as stream:
            for record in itertools.islice(read_records(stream, url), skipped, None):
                if self._is_good(record):
                    yield record

    def _is_good(self, record: Record) -> bool:
        try:
            record.check(*self.kinds)
        except DataError as error:
            self._samples.failed(record.name, error)
            return False
        self._samples.passed()
        return True

    def count(self) -> list[int]:
        """Samples of each shard: as its index says, otherwise by reading them all once."""
        if self.counts is None:
            _log.info("counting the samples of %d shards of %s", len(self.urls), self.source.path)
            self.counts = [self._count(shard) for shard in range(len(self.urls))]
        return self.counts

    def _count(self, shard: int) -> int:
        number = 0
        try:
            for number in self._numbers(shard):  # noqa: B007  (a damaged shard has some, too)
                pass
        except UNREADABLE as error:
            self._shards.failed(self.urls[shard], error)
        return number

    def __len__(self) -> int:
        return sum(self.count())

    def read(self, start: int, stop: int) -> Iterator[Item | None]:
        for shard, low, high in _overlaps(self.count(), start, stop):
            yield from self._read_shard(self.urls[shard], low, high)

    def _read_shard(self, url: str, low: int, high: int) -> Iterator[Item | None]:
        """Samples ``low`` to ``high`` of one shard, or None for each that is not there."""
        position = 0
        try:
            with open_shard(url, self.cache) as stream:
                for record in read_records(stream, url):
                    if position >= high:
                        break
                    if position >= low:
                        good = self._is_good(record)
                        position += 1
                        yield ShardItem(self.source, record) if good else None
                    else:
                        position += 1
            if position < high:
                raise DataError(f"{url} ends before its sample {high}")
        except TooManyError:
            raise
        except UNREADABLE as error:
            self._shards.failed(url, error)
            for _ in range(max(low, position), high):
                yield None
        else:
            self._shards.passed()


def _overlaps(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The parts, each of so many samples, that ``start`` to ``stop`` touches, and where in them."""
    before = 0
    for part, count in enumerate(counts):
        low, high = max(start - before, 0), min(stop - before, count)
        before += count
        if low < high:
            yield part, low, high


def _size(record: Record) -> int:
    return sum(map(len, record.fields.values()))


@dataclass
class Mix:
    """Several feeds, each drawn from by its source's weight."""

    feeds: Sequence[Feed]

    def shares(self) -> NDArray[np.float64]:
        """How much of what is drawn comes of each feed, in sum 1.

        Raises:
            UsageError: weights that are all 0, or a feed that has a share and nothing to draw.
        """
        weights = np.array([feed.source.weight for feed in self.feeds], np.float64)
        if not weights.sum() > 0:
            names = ", ".join(feed.source.path for feed in self.feeds) or "no source"
            raise UsageError(
                f"nothing can be drawn of {names}: the weights must not all be 0; give one more"
            )
        for feed, weight in zip(self.feeds, weights, strict=True):
            if weight:
                feed.check()
        return weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> Iterator[Item]:
        """Samples without end; raises what :meth:`shares` does."""
        shares = np.cumsum(self.shares())
        seeds = rng.spawn(len(self.feeds))
        draws = [feed.draw(own) for feed, own in zip(self.feeds, seeds, strict=True)]
        while True:
            yield next(
                draws[min(int(np.searchsorted(shares, rng.random(), "right")), len(draws) - 1)]
            )

    def __len__(self) -> int:
        return sum(len(feed) for feed in self.feeds)

    def read(self, start: int, stop: int) -> Iterator[Item | None]:
        """Samples ``start`` to ``stop`` of the feeds in a row; None for one that cannot be had."""
        for feed, low, high in _overlaps([len(feed) for feed in self.feeds], start, stop):
            yield from self.feeds[feed].read(low, high)

    def pool(self, most: int) -> list[Item]:
        """Up to ``most`` samples, the first of each feed in turn: backgrounds for evaluation."""
        each = max(1, most // max(1, len(self.feeds)))
        items = [item for feed in self.feeds for item in feed.read(0, min(each, len(feed)))]
        return [item for item in items if item is not None]


# From sources to feeds


@dataclass(frozen=True)
class Reading:
    """How shards are read; see :class:`ShardFeed`."""

    shuffle: int = 200
    tolerance: float = 0.01
    cache: str | None = None


def is_shards(path: str) -> bool:
    """Whether a source's path names shards rather than a folder."""
    return any(
        not is_local(part)
        or part.rstrip("/").endswith((".tar", ".tar.gz", ".tgz"))
        or (local_path(part) / INDEX).is_file()
        for part in path.split("::")
    )


def open_source(
    source: Source, kinds: tuple[str, ...], reading: Reading
) -> tuple[Feed, Feed | None]:
    """What a source holds for training, and what it holds out for validation.

    A folder of shards holds out the split ``validation`` that its index lists; a plain folder the
    share ``hold_out``, by the hash of the names; shards by pattern nothing. No photograph is on
    both sides: where a small folder is held out as a whole, nothing is left to train on, which is
    an error when it is drawn from (:meth:`Mix.shares`).

    Args:
        source: see :class:`~deep_image_compositing.data.items.Source`.
        kinds: of samples that are wanted: ``segmentation``, ``mattes``, ``backgrounds``,
            ``triplets``.
        reading: how shards are read.

    Raises:
        UsageError: when there is nothing at the path, or shards of another kind.
        DataError: when an index cannot be read.
    """
    if not is_shards(source.path):
        pictures = "backgrounds" in kinds
        root = local_path(source.path)
        pairs = (
            [Pair(path, None) for path in folders.find_images(root)]
            if pictures
            else folders.find_pairs(root)
        )
        if source.doubt is not None:
            pairs = folders.drop_doubtful(pairs, source.path, source.doubt)
        apart = [pair.held_out(source.hold_out, source.sequences) for pair in pairs]
        held_out = [pair for pair, out in zip(pairs, apart, strict=True) if out]
        masks = [pair.label for pair in pairs if pair.label and pair.label.stem.endswith(".mask")]
        if masks and not {"segmentation", "backgrounds"} & set(kinds):
            raise UsageError(
                f"{source.path} holds masks ({masks[0].name}), but mattes are needed: photographs "
                "with soft alphas, as NAME.alpha.png, or cut-outs"
            )
        kept = [pair for pair, out in zip(pairs, apart, strict=True) if not out]
        return FolderFeed(source, kept), FolderFeed(source, held_out) if held_out else None
    options = {"shuffle": reading.shuffle, "tolerance": reading.tolerance, "cache": reading.cache}
    if not is_local(source.path) or not local_path(source.path).is_dir():
        urls = expand(source.path)
        _check_there(source, urls, reading.tolerance)
        return ShardFeed(source, urls, kinds, _known_counts(urls), **options), None  # type: ignore[arg-type]
    folder = local_path(source.path)
    index = Index.read(folder)
    if index.kind not in kinds:
        raise UsageError(f"{folder} holds shards of {index.kind}, wanted: {' or '.join(kinds)}")
    found: dict[str, Feed] = {}
    for split, shards in index.splits.items():
        if shards:
            urls = [str(folder / shard.name) for shard in shards]
            _check_there(source, urls, reading.tolerance, [shard.bytes for shard in shards])
            counts = [shard.samples for shard in shards]
            found[split] = ShardFeed(source, urls, kinds, counts, **options)  # type: ignore[arg-type]
    if not found:
        raise UsageError(f"{folder} holds no shards")
    first = found.get("train") or next(iter(found.values()))
    return first, found.get("validation")


def open_held_out(source: Source, kinds: tuple[str, ...], reading: Reading) -> Feed:
    """What a source that is named for validation holds: all of a plain folder or of a pattern.

    Of a folder of shards only the split ``validation`` where there is one.
    """
    train, held_out = open_source(source, kinds, reading)
    if isinstance(train, FolderFeed) and isinstance(held_out, FolderFeed):
        return FolderFeed(source, sorted({*train.pairs, *held_out.pairs}, key=lambda p: p.image))
    return held_out or train


def _check_there(
    source: Source, urls: Sequence[str], tolerance: float, sizes: Sequence[int] | None = None
) -> None:
    """Find before the run which local shards are missing or cut short.

    Raises:
        DataError: when they are more than the tolerated share.
    """
    bad = []
    for i, url in enumerate(urls):
        if is_local(url):
            path = local_path(url)
            if not path.is_file():
                bad.append(f"{url} does not exist")
            elif sizes is not None and path.stat().st_size != sizes[i]:
                bad.append(f"{url} has {path.stat().st_size} bytes, its index says {sizes[i]}")
    if len(bad) > tolerance * max(len(urls), _GRACE):
        raise DataError(
            f"{len(bad)} of {len(urls)} shards of {source.path} are missing or damaged, more than "
            f"the tolerated share of {tolerance:g}; the first: {bad[0]}"
        )


def _known_counts(urls: Sequence[str]) -> list[int] | None:
    """Samples of local shards from the index beside them; None when one is not listed."""
    known: dict[Path, dict[str, int]] = {}
    counts = []
    for url in urls:
        if not is_local(url):
            return None
        path = local_path(url)
        if path.parent not in known:
            try:
                index = Index.read(path.parent)
            except DataError:
                return None
            known[path.parent] = {
                s.name: s.samples for every in index.splits.values() for s in every
            }
        if path.name not in known[path.parent]:
            return None
        counts.append(known[path.parent][path.name])
    return counts
