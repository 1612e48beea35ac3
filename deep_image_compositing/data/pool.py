"""Work over several processes, for ``shards`` and ``shards verify``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from deep_image_compositing.errors import CompositingError, UsageError


def run(items: Any, workers: int | None) -> Iterator[Any]:
    """The items of a map-style dataset, in order, made by several processes that begin at once.

    Args:
        items: with ``__len__`` and ``__getitem__``; what it raises ends all.
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
        items,
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
