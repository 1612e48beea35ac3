"""Loader processes: batches of samples, error messages without tracebacks, clean termination."""

from __future__ import annotations

import itertools
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deep_image_compositing.data.datasets import Mixture, StreamedDataset
from deep_image_compositing.data.items import Item
from deep_image_compositing.data.sampler import Draw, EvaluationSampler, TrainingSampler, seed_of
from deep_image_compositing.data.shards import Lazy
from deep_image_compositing.data.tars import UNREADABLE, Tolerance
from deep_image_compositing.data.transfer import kill_programs
from deep_image_compositing.errors import CompositingError, DataError, UsageError

Sample = dict[str, Tensor]
Make = Callable[[np.random.Generator, Mapping[str, Item], bool], Sample]
"""Makes an 8-bit sample from items; the last argument is True for evaluation."""

_log = logging.getLogger("deep_image_compositing")
_ERROR = "error"
_TICK = 5  # seconds between torch's checks that its loader processes are alive
_waiting: list[float] = []  # start of the current wait for a batch in this process, if any


def seconds_without_data() -> float:
    """How long this process has been waiting for a batch; 0 if it is not waiting."""
    return time.monotonic() - _waiting[-1] if _waiting else 0.0


class Samples(Dataset[Any]):
    """Batches of 8-bit samples: ``samples[draws]`` is a packed batch.

    ``make`` makes a sample from items of the ``mixtures``. With ``held_out``, for evaluation,
    samples also have the field ``valid``. The share ``tolerance`` of all may be unreadable.
    """

    def __init__(
        self,
        mixtures: Mapping[str, Mixture],
        make: Make,
        held_out: bool = False,
        tolerance: float = 0.01,
    ) -> None:
        self.mixtures = dict(mixtures)
        self.make = make
        self.held_out = held_out
        self.tolerance = Tolerance("samples", tolerance)

    def __getitem__(self, draws: list[Draw]) -> Any:
        try:
            return pack([self._sample(draw) for draw in draws])
        except (CompositingError, OSError) as error:
            return sent(error)

    def _sample(self, draw: Draw) -> Sample:
        """One sample, replaced by others of the same datasets while it cannot be read.

        Later samples do not depend on replacements. In evaluation a replacement is not valid.
        """
        rng, indices = np.random.default_rng(draw.seed), draw.items
        for attempt in itertools.count(1):
            try:
                items = Lazy(indices, lambda name, index: self.mixtures[name][index])
                sample = self.make(rng, items, self.held_out)
                break
            except UNREADABLE as error:
                self.tolerance.failed(error)
                rng = np.random.default_rng([*draw.seed, attempt])
                indices = {name: self._other(name, index, rng) for name, index in indices.items()}
        self.tolerance.passed()
        sample["seed"] = torch.tensor(seed_of(*draw.seed))
        if self.held_out:
            sample["valid"] = torch.tensor(draw.valid and attempt == 1)
        return sample

    def _other(self, name: str, index: int, rng: np.random.Generator) -> int:
        """A random sample of the same dataset."""
        starts, part = self.mixtures[name].starts, self.mixtures[name].part(index)
        return int(rng.integers(starts[part], starts[part + 1]))


# Packed batches


def pack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Pack a batch into one tensor, for ``unpack``; samples may lack fields.

    Sending a tensor takes a file and a connection: one per field cost a sixth of a loader's time.
    """
    examples: Sample = {}
    for sample in samples:
        examples |= sample
    fields: dict[str, tuple[torch.dtype, list[int], tuple[int, ...]]] = {
        name: (value.dtype, [i for i, sample in enumerate(samples) if name in sample], value.shape)
        for name, value in sorted(examples.items(), key=lambda field: -field[1].element_size())
    }
    data = torch.empty(sum(_sizes(fields)), dtype=torch.uint8)
    for name, rows, part in _parts(data, fields):
        torch.stack([samples[i][name] for i in rows], out=part)
    return {"data": data, "fields": fields, "count": len(samples)}


def unpack(packed: Mapping[str, Any]) -> Sample:
    """The batch of ``pack``, stacked by field; a field that a sample lacks is 0."""
    batch, count = {}, packed["count"]
    for name, rows, part in _parts(packed["data"], packed["fields"]):
        if len(rows) < count:
            zeros = part.new_zeros((count, *part.shape[1:]))
            part = zeros.index_copy_(0, torch.tensor(rows), part)
        batch[name] = part
    return batch


def _sizes(fields: Mapping[str, Any]) -> list[int]:
    return [len(rows) * math.prod(shape) * dtype.itemsize for dtype, rows, shape in fields.values()]


def _parts(data: Tensor, fields: Mapping[str, Any]) -> Iterator[tuple[str, list[int], Tensor]]:
    """Each field: its name, the samples that have it, and their values as a view of ``data``."""
    parts = data.split(_sizes(fields))
    for (name, (dtype, rows, shape)), part in zip(fields.items(), parts, strict=True):
        yield name, rows, part.view(dtype).view(len(rows), *shape)


def sent(error: Exception) -> dict[str, Any]:
    """An error as a batch: raised in a loader process, it would arrive as a traceback."""
    return {_ERROR: (UsageError if isinstance(error, UsageError) else DataError, str(error))}


def raise_sent(batch: Mapping[str, Any]) -> None:
    """Raise the ``UsageError`` or ``DataError`` of a batch that ``sent`` made."""
    if _ERROR in batch:
        kind, message = batch[_ERROR]
        raise kind(message)


# Loader processes


def start_worker(worker: int) -> None:
    """Prepare a process of a ``WorkerLoader``."""
    # Batch systems and terminals signal all processes of a job. Only the trainer handles these
    # signals, and needs its loaders while it does.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        threading.Thread(target=_exit_with_trainer, daemon=True).start()
    # pymatting and torch both use OpenMP threads, which deadlock in a process that was forked
    # from one that has used them.
    os.environ["NUMBA_NUM_THREADS"] = "1"
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(1)


def _exit_with_trainer() -> None:
    """Exit when the trainer sends SIGTERM or has ended; ignore a SIGTERM of anyone else."""
    trainer = multiprocessing.parent_process()  # os.getppid() changes when the parent ends
    while trainer is not None and trainer.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, _TICK)
        if received is not None and received.si_pid == trainer.pid:
            break
    kill_programs()
    os._exit(0)


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose processes start at once, with SIGTERM blocked, for ``start_worker``.

    SIGTERM is blocked early because threads of libraries, started before ``start_worker`` runs,
    would receive it. ``CompositingError`` if a process is killed.
    """

    def __iter__(self) -> Any:
        return self._checked(self._start())

    def _start(self) -> Any:
        if not hasattr(signal, "sigtimedwait"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise CompositingError(
                "a worker process was killed, perhaps for want of memory: "
                "run it again, with fewer --workers"
            ) from None


def in_order(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int | None
) -> Iterator[Any]:
    """The results of ``function`` for each of ``items``, in order, from processes started at once.

    ``workers`` is the number of processes, by default one per core; 1 uses this process.
    ``CompositingError`` if one is killed; an exception of the function is passed on.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    count = min(workers or os.cpu_count() or 1, len(items))
    loader = WorkerLoader(
        items,  # type: ignore[arg-type]  # works as a dataset
        batch_size=None,
        num_workers=count if count > 1 else 0,
        collate_fn=function,
        worker_init_fn=start_worker,
    )
    results: Iterator[Any] = iter(loader)
    return results


class Loader(WorkerLoader):
    """A DataLoader of ``Samples`` that raises errors without tracebacks, and can be resumed.

    The batches do not depend on the number of processes, unless something is streamed. A process
    that sends nothing for ``timeout`` seconds is an error. ``about`` holds settings that the order
    of samples depends on: a resumed run logs a warning if they differ.
    """

    def __init__(
        self,
        samples: Samples,
        sampler: TrainingSampler | EvaluationSampler,
        num_workers: int = 0,
        timeout: float = 600.0,
        about: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            samples,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=_TICK if num_workers else 0,
            worker_init_fn=start_worker,
        )
        self.patience = timeout
        self.about = dict(about or {})

    def _start(self) -> Any:
        last: Any = self._iterator  # of the previous epoch, with the same persistent workers
        if last is not None:
            # Fetch the requested batches of an epoch cut short: torch's reset would time out.
            last._sampler_iter = iter(())
            for _ in self._checked(last):
                pass
        return super()._start()

    def _checked(self, batches: Iterator[Any]) -> Iterator[Sample]:
        waited = 0.0
        while True:
            _waiting.append(time.monotonic() - waited)
            try:
                batch = next(batches, None)
            except (KeyboardInterrupt, SystemExit):
                # torch would wait five seconds for each worker that is stuck.
                for worker in getattr(batches, "_workers", ()):
                    worker.terminate()
                raise
            except RuntimeError as error:
                if "DataLoader" not in str(error):  # a bug keeps its traceback
                    raise
                waited += _TICK
                if "timed out" in str(error) and waited < self.patience:
                    continue  # all workers are alive, so one may just be slow
                raise DataError(
                    f"a loader process was killed (perhaps for want of memory) or is stuck: {error}"
                ) from None
            finally:
                _waiting.pop()
            waited = 0.0
            if batch is None:
                return
            raise_sent(batch)
            yield unpack(batch)

    def state_dict(self) -> dict[str, Any]:
        """Settings that the order of batches depends on; the trainer saves the position."""
        return dict(self.about)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Log a warning about what changes the order of samples since the interrupted run."""
        changed = [
            f"{name} was {state[name]} and is {value}"
            for name, value in self.about.items()
            if state.get(name, value) != value
        ]
        changed += [
            f"{dataset.source.path} is streamed"
            for mixture in self.dataset.mixtures.values()  # type: ignore[attr-defined]
            for dataset in mixture.datasets
            if isinstance(dataset, StreamedDataset)
        ]
        if changed:
            _log.warning(
                "the resumed run will see other samples: %s", "; ".join(dict.fromkeys(changed))
            )
