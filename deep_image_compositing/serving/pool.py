"""Worker processes, one per device, and the queue of requests for them."""

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
_PIPE_ERRORS = (EOFError, OSError)  # raised when the other end of a pipe is closed


class Busy(Exception):
    """The queue is full."""


class Unready(CompositingError):
    """A worker process cannot create its stages."""


class Worker:
    """A process that performs one job at a time on a device, and is restarted if it dies.

    The process imports the module ``work`` and calls its ``start``, which loads ``stages``, and
    ``perform``. It is killed when a job takes more than ``seconds``.
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
        """Whether the process is running."""
        return self._process is not None and self._process.is_alive()

    async def start(self) -> Connection:
        """Start the process if needed and wait until it is ready.

        Raises ``UsageError`` if it cannot use the device, ``Unready`` if it cannot create its
        stages, and ``CompositingError`` if it dies.
        """
        if self.alive and self._pipe is not None:
            return self._pipe
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        arguments = (child_end, *self._arguments)
        self._process = context.Process(
            target=_run_worker, args=arguments, daemon=True, name=f"on {self.device}"
        )
        self._process.start()
        child_end.close()
        self.starts += 1
        try:
            failure = await asyncio.to_thread(self._pipe.recv)
        except _PIPE_ERRORS:
            raise CompositingError(f"the process for {self.device} died during startup") from None
        if failure is not None:
            is_usage, text = failure
            raise UsageError(text) if is_usage else Unready(text)
        return self._pipe

    async def perform(self, job: Job) -> Answer:
        """Perform a job in the process; a job during which it dies is tried once more."""
        for _ in range(_TRIES):
            try:
                async with asyncio.timeout(self._seconds):
                    pipe = await self.start()
                    answer: Answer = await asyncio.to_thread(_send_job, pipe, job)
                    return answer
            except TimeoutError:
                self.stop()
                text = f"it took longer than {self._seconds:g} seconds, which is the limit"
                return Answer(504, text.encode())
            except (UsageError, Unready) as error:  # although an earlier start succeeded
                self.stop()
                _log.error("the worker on %s cannot start: %s", self.device, error)
                return Answer(503, b"the worker cannot start; see the server's log")
            except (*_PIPE_ERRORS, CompositingError):
                self.stop()
        return Answer(500, b"the worker process died twice; try smaller pictures")

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        # The pipe is not closed here because a thread may still be reading from it.
        self._process = self._pipe = None


class Pool:
    """Assigns jobs to idle workers in order; at most ``queue`` further jobs may wait."""

    def __init__(self, workers: Sequence[Any], queue: int = 32) -> None:
        self.workers = list(workers)
        self.queue = queue
        self.active = 0
        self._idle: asyncio.Queue[Any] = asyncio.Queue()
        for worker in self.workers:
            self._idle.put_nowait(worker)
        self._tasks: set[asyncio.Task[Answer]] = set()

    @contextlib.contextmanager
    def reserve(self) -> Iterator[None]:
        """Hold a place among the requests that wait or run; raises ``Busy`` if there is none."""
        if self.active >= self.queue + len(self.workers):
            raise Busy
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def run(self, job: Job) -> Answer:
        """Run a job on the next idle worker; a caller cancelled while waiting starts no job."""
        worker = await self._idle.get()
        task: asyncio.Task[Answer] = asyncio.ensure_future(worker.perform(job))
        self._tasks.add(task)

        def release(task: asyncio.Task[Answer]) -> None:
            self._tasks.discard(task)
            self._idle.put_nowait(worker)

        task.add_done_callback(release)
        return await asyncio.shield(task)  # a running job cannot be interrupted

    async def start(self) -> None:
        """Start all workers; raises the same errors as ``Worker.start``."""
        await asyncio.gather(*(worker.start() for worker in self.workers))

    def stop(self) -> None:
        """Kill all workers and drop their jobs."""
        for task in self._tasks:  # otherwise a job would be tried again when its worker dies
            task.cancel()
        for worker in self.workers:
            worker.stop()


def _send_job(pipe: Connection, job: Job) -> Any:
    pipe.send(job)
    return pipe.recv()


def _run_worker(pipe: Connection, module: str, device: str, stages: tuple[Stage, ...]) -> None:
    """Perform the jobs that arrive through ``pipe`` until it is closed; runs in the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the server finishes running jobs
    _log.setLevel(logging.ERROR)  # warnings about a photograph do not belong in the server's log
    work = importlib.import_module(module)
    with contextlib.suppress(*_PIPE_ERRORS):
        try:
            work.start(device, stages)
        except Exception as error:
            pipe.send((isinstance(error, UsageError), error_text(error)))
            return
        pipe.send(None)
        while True:
            pipe.send(work.perform(pipe.recv()))
