"""Threads that read ahead of slow work and write behind it; folders of photographs use them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

AHEAD = 2
"""What is read ahead, and what waits to be written."""

THREAD = "read ahead, write behind"
"""Name of the threads."""


class ReadAhead(Generic[T]):
    """What is read of numbers, in their order; a few are read ahead in threads, and not more.

    Args:
        numbers: what to read.
        read: reads one, and never raises.
        stopped: asked before each whether to end.
    """

    def __init__(
        self, numbers: Sequence[int], read: Callable[[int], T], stopped: Callable[[], bool]
    ) -> None:
        self.numbers = numbers
        self.read = read
        self.stopped = stopped
        self.threads: Threads | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[T]:
        self.threads, waiting = Threads(AHEAD), deque[Future[T]]()
        for number in self.numbers:
            if self.stopped():
                return
            waiting.append(self.threads.submit(self.read, number))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting and not self.stopped():
            yield waiting.popleft().result()


class Threads:
    """Threads that end with the process, however it ends; those of an executor are waited for.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=THREAD, daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have ``call(*args)`` done."""
        future: Future[Any] = Future()
        self._tasks.put((future, call, args))
        return future

    def close(self) -> None:
        """Take nothing more."""
        for _ in self._threads:
            self._tasks.put(None)

    def join(self) -> None:
        """Wait for what has been taken, once closed."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call, args = task
            try:
                future.set_result(call(*args))
            except BaseException as error:
                future.set_exception(error)
            del task, future, call, args  # or the last composite would stay until the next comes
