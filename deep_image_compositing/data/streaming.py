"""Shards from elsewhere that nobody caches, streamed while training through webdataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from deep_image_compositing.data.datasets import Mixture, ShardDataset
from deep_image_compositing.data.items import ShardItem
from deep_image_compositing.data.shards import Record
from deep_image_compositing.data.tars import read_records
from deep_image_compositing.data.tolerance import UNREADABLE, Tolerance
from deep_image_compositing.data.transfer import is_local, open_shard
from deep_image_compositing.errors import DataError

_BUFFER_BYTES = 128 * 2**20


def stream_remote(mixture: Mixture, *seed: int) -> Mixture:
    """The mixture, in which shards from elsewhere are streamed unless they are cached."""
    return Mixture(
        [
            StreamedDataset(dataset, *seed, number)
            if isinstance(dataset, ShardDataset)
            and dataset.reading.cache is None
            and not all(map(is_local, dataset.urls))
            else dataset
            for number, dataset in enumerate(mixture.datasets)
        ]
    )


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

        info = torch.utils.data.get_worker_info()
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
