"""Worker processes, one a device, and the requests that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from deep_image_compositing.errors import CompositingError, UsageError, error_text
from deep_image_compositing.serving.jobs import Answer, Job, Stage

WORK = "deep_image_compositing.serving.work"

_TRIES = 2
_log = logging.getLogger("deep_image_compositing")
_LOST = (EOFError, OSError)  # what a pipe raises whose other end is gone


class Busy(Exception):
    """As many requests as may wait do so already."""


class Unready(CompositingError):
    """A process that runs, and cannot have its stages ready."""


class Worker:
    """A process that does one job at a time on a device, and is started anew when it has ended.

    It has ``stages`` ready, is ended with a job that takes more than ``seconds``, and calls
    ``start`` and ``perform`` of the module ``work``, which is imported there alone.
    """

    def __init__(
        self, device: str, stages: tuple[Stage, ...], seconds: float, work: str = WORK
    ) -> None:
        self.device = device
        self.starts = 0
        self._seconds = seconds
        self._arguments = (work, device, stages)
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a process that can be given a job."""
        return self._process is not None and self._process.is_alive()

    async def start(self) -> Connection:
        """Start the process unless it is there, and wait until it is ready.

        ``UsageError``: it cannot work on the device. ``Unready``: it cannot make its stages.
        ``CompositingError``: it has ended instead.
        """
        if self.alive and self._pipe is not None:
            return self._pipe
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, *self._arguments), daemon=True, name=f"on {self.device}"
        )
        self._process.start()
        theirs.close()
        self.starts += 1
        try:
            wrong = await asyncio.to_thread(self._pipe.recv)
        except _LOST:
            raise CompositingError(f"the process for {self.device} ended as it began") from None
        if wrong is not None:
            is_usage, text = wrong
            raise UsageError(text) if is_usage else Unready(text)
        return self._pipe

    async def perform(self, job: Job) -> Answer:
        """What the process makes of a job. One with which it ends is tried once more."""
        for _ in range(_TRIES):
            try:
                async with asyncio.timeout(self._seconds):
                    pipe = await self.start()
                    answer: Answer = await asyncio.to_thread(_ask, pipe, job)
                    return answer
            except TimeoutError:
                self.stop()
                said = f"it took longer than {self._seconds:g} seconds, which is the limit here"
                return Answer(504, said.encode())
            except (UsageError, Unready) as error:  # it was ready once
                self.stop()
                _log.error("the worker on %s cannot start: %s", self.device, error)
                return Answer(503, b"the worker cannot start; the server's log says why")
            except (*_LOST, CompositingError):
                self.stop()
        return Answer(500, b"the process that makes the pictures ended twice; try smaller ones")

    def stop(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None  # a thread may still read what is closed at the other end


class Pool:
    """Hands jobs to whichever worker is free, in their order; ``queue`` more of them may wait."""

    def __init__(self, workers: Sequence[Any], queue: int = 32) -> None:
        self.workers = list(workers)
        self.queue = queue
        self.taken = 0
        self._idle: asyncio.Queue[Any] = asyncio.Queue()
        for worker in self.workers:
            self._idle.put_nowait(worker)
        self._under_way: set[asyncio.Task[Answer]] = set()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who wait or are served, before files are read; else ``Busy``."""
        if self.taken >= self.queue + len(self.workers):
            raise Busy
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, job: Job) -> Answer:
        """What a worker makes of a job. Who is cancelled while waiting leaves no work behind."""
        worker = await self._idle.get()
        task: asyncio.Task[Answer] = asyncio.ensure_future(worker.perform(job))
        self._under_way.add(task)

        def end(task: asyncio.Task[Answer]) -> None:
            self._under_way.discard(task)
            self._idle.put_nowait(worker)

        task.add_done_callback(end)
        return await asyncio.shield(task)  # what has begun cannot be left off

    async def start(self) -> None:
        """Have every worker ready; raises what ``Worker.start`` does."""
        await asyncio.gather(*(worker.start() for worker in self.workers))

    def stop(self) -> None:
        """End all workers at once, with what they do."""
        for task in self._under_way:  # else a job whose worker ends would be tried once more
            task.cancel()
        for worker in self.workers:
            worker.stop()


def _ask(pipe: Connection, job: Job) -> Any:
    pipe.send(job)
    return pipe.recv()


def _work(pipe: Connection, module: str, device: str, stages: tuple[Stage, ...]) -> None:
    """The process: jobs come and answers go through ``pipe``, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which finishes
    _log.setLevel(logging.ERROR)  # what a photograph's own answer says already
    work = importlib.import_module(module)
    with contextlib.suppress(*_LOST):
        try:
            work.start(device, stages)
        except Exception as error:
            pipe.send((isinstance(error, UsageError), error_text(error)))
            return
        pipe.send(None)
        while True:
            pipe.send(work.perform(pipe.recv()))
