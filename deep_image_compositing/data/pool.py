"""Work in parts over several processes; ``shards`` and ``shards verify`` use it, others its bar."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.messages import printable

T = TypeVar("T")
R = TypeVar("R")

Tick = Callable[[], None]
"""What work calls after each of its samples."""


def run(
    work: Callable[[T, Tick], R],
    tasks: Sequence[T],
    workers: int | None,
    advance: Callable[[int], None],
) -> Iterator[R]:
    """Results of ``work(task, tick)``, as they are finished.

    The first task that raises ends all; so does leaving the iteration. A lone worker is this
    process itself.

    Args:
        work: a function at the top of a module.
        tasks: what it is called with.
        workers: number of processes; by default one a core.
        advance: called with the number of samples that were done since its last call.

    Raises:
        UsageError: fewer than one worker.
        CompositingError: a process was killed.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    count = min(workers or os.cpu_count() or 1, len(tasks))
    if count <= 1:
        for task in tasks:
            yield work(task, lambda: advance(1))
        return
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    seen = 0
    with ProcessPoolExecutor(count, context, _start, (done, stop)) as pool:
        try:
            waiting = {pool.submit(_call, work, task) for task in tasks}
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                now = done.value
                advance(now - seen)
                seen = now
                for future in finished:
                    yield future.result()
        except BrokenProcessPool:
            raise CompositingError(
                "a worker process was killed, perhaps for want of memory: "
                "run it again, with fewer --workers"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def progress(
    label: str, total: int, show: bool, unit: str = "samples"
) -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left; gives the function that moves it."""
    if not show:
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed or 0
            return Text(f"{speed:.{1 if speed >= 1 else 2}f} {unit}/s")

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape(printable(label)), total=total)
        yield lambda steps: bar.advance(task, steps)


# In a worker process


class _Stopped(Exception):
    """The others have ended; this one shall too."""


_shared: list[Any] = []
"""The counter of all processes, and the event that ends them."""


def _start(done: Any, stop: Any) -> None:
    _shared[:] = [done, stop]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and says so
    os.environ["NUMBA_NUM_THREADS"] = "1"  # pymatting; every core has a process already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed closes nothing, and its workers would wait for it forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(work: Callable[[T, Tick], R], task: T) -> R:
    return work(task, _tick)


def _tick() -> None:
    done, stop = _shared
    with done.get_lock():
        done.value += 1
    if stop.is_set():
        raise _Stopped
