"""Work over several processes, for ``shards`` and ``shards verify``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset

from deep_image_compositing.errors import CompositingError, UsageError


class _Results(Dataset[Any]):
    """What a function makes of each item."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def run(function: Callable[[Any], Any], items: Sequence[Any], workers: int | None) -> Iterator[Any]:
    """What ``function`` makes of each of ``items``, in order, by processes that begin at once.

    Args:
        function: what it raises ends all.
        items: that can be sent to another process.
        workers: number of processes, by default one a core; a lone one is this process itself.

    Raises:
        UsageError: fewer than one worker.
        CompositingError: a process was killed.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    from deep_image_compositing.data.loading import WorkerLoader, start_worker

    count = min(workers or os.cpu_count() or 1, len(items))
    loader = WorkerLoader(
        _Results(function, items),
        batch_size=None,
        num_workers=count if count > 1 else 0,
        worker_init_fn=start_worker,
    )
    return _named(iter(loader))


def _named(items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise CompositingError(
            "a worker process was killed, perhaps for want of memory: "
            "run it again, with fewer --workers"
        ) from None
