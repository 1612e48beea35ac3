"""Work in loader processes: samples and batches, errors in a sentence, runs that can be stopped."""

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
"""Makes an 8-bit sample of items; the last argument says whether it is for evaluation."""

_log = logging.getLogger("deep_image_compositing")
_ERROR = "error"
_TICK = 5
"""Seconds after which torch looks whether its loader processes are alive."""
_waiting: list[float] = []
"""Since when this process waits for a batch, if it does."""


def seconds_without_data() -> float:
    """For how long this process has been waiting for a batch now; 0 when it is not."""
    return time.monotonic() - _waiting[-1] if _waiting else 0.0


class Samples(Dataset[Any]):
    """Finished 8-bit samples: ``samples[draws]`` are those of a batch, packed.

    ``make`` makes a sample of items of the ``mixtures``; those that are ``held_out``, for an
    evaluation, also get ``valid``. Of all, the share ``tolerance`` may be unreadable.
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
        """One sample. Where it cannot be read, others of the same datasets stand in.

        So the samples to come are the same with and without a bad one before them. In an
        evaluation what stands in is not valid.
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
        """Any sample of the same dataset."""
        starts, part = self.mixtures[name].starts, self.mixtures[name].part(index)
        return int(rng.integers(starts[part], starts[part + 1]))


# Batches, sent from a loader process in one tensor


def pack(samples: Sequence[Sample]) -> dict[str, Any]:
    """The samples of a batch, for ``unpack``, in one tensor, without the fields that they lack.

    A loader process opens a file and a connection for each that it sends, a sixth of its time.
    """
    named: Sample = {}
    for sample in samples:
        named |= sample
    fields: dict[str, tuple[torch.dtype, list[int], tuple[int, ...]]] = {
        name: (value.dtype, [i for i, each in enumerate(samples) if name in each], value.shape)
        for name, value in sorted(named.items(), key=lambda field: -field[1].element_size())
    }
    data = torch.empty(sum(_sizes(fields)), dtype=torch.uint8)
    for name, part in _parts(data, fields):
        torch.stack([samples[i][name] for i in fields[name][1]], out=part)
    return {"data": data, "fields": fields, "count": len(samples)}


def unpack(packed: Mapping[str, Any]) -> Sample:
    """The batch that ``pack`` has made: a field that only some samples have is 0 in the others."""
    batch, count = {}, packed["count"]
    for name, part in _parts(packed["data"], packed["fields"]):
        _, rows, shape = packed["fields"][name]
        if len(rows) < count:
            part = part.new_zeros((count, *shape)).index_copy_(0, torch.tensor(rows), part)
        batch[name] = part
    return batch


def _sizes(fields: Mapping[str, Any]) -> list[int]:
    return [len(rows) * math.prod(shape) * kind.itemsize for kind, rows, shape in fields.values()]


def _parts(data: Tensor, fields: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each field as a view of ``data``: the rows that are there."""
    for (name, (kind, rows, shape)), part in zip(
        fields.items(), data.split(_sizes(fields)), strict=True
    ):
        yield name, part.view(kind).view(len(rows), *shape)


def sent(error: Exception) -> dict[str, Any]:
    """What a loader process sends for a batch: raised there, it would become a traceback."""
    return {_ERROR: (UsageError if isinstance(error, UsageError) else DataError, str(error))}


def raise_sent(batch: Mapping[str, Any]) -> None:
    """Raise the ``UsageError`` or ``DataError`` that a loader process has sent for a batch."""
    if _ERROR in batch:
        kind, said = batch[_ERROR]
        raise kind(said)


# Loader processes


def start_worker(worker: int) -> None:
    """What every process of a ``WorkerLoader`` does first."""
    # Batch systems and terminals signal all processes of a job; only the trainer is to act, and
    # needs its loaders until it has.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        threading.Thread(target=_end_when_the_trainer_says, daemon=True).start()
    # pymatting's threads are OpenMP's, as torch's are: in a process that was forked from one that
    # has used them, they would wait for each other forever.
    os.environ["NUMBA_NUM_THREADS"] = "1"
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(1)


def _end_when_the_trainer_says() -> None:
    """A SIGTERM of the trainer itself ends a loader process; so does its end."""
    trainer = multiprocessing.parent_process()  # os.getppid() is another's once it has ended
    while trainer is not None and trainer.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, _TICK)
        if told is not None and told.si_pid == trainer.pid:
            break
    kill_programs()
    os._exit(0)


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose processes begin at once, with SIGTERM blocked, for ``start_worker``.

    Libraries start threads there before anything can be told to them, and those would hear it.
    ``CompositingError`` if a process is killed.
    """

    def __iter__(self) -> Any:
        return self._checked(self._begin())

    def _begin(self) -> Any:
        if not hasattr(signal, "sigtimedwait"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _checked(self, made: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from made
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
    """What ``function`` makes of each of ``items``, in order, by processes that begin at once.

    There are as many ``workers``, by default one a core; a lone one is this process itself.
    ``CompositingError`` if one is killed; what the function raises ends all, too.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    count = min(workers or os.cpu_count() or 1, len(items))
    loader = WorkerLoader(
        items,  # type: ignore[arg-type]  # as good as a dataset
        batch_size=None,
        num_workers=count if count > 1 else 0,
        collate_fn=function,
        worker_init_fn=start_worker,
    )
    made: Iterator[Any] = iter(loader)
    return made


class Loader(WorkerLoader):
    """A DataLoader that names faults in a sentence, and compares a resumed run with the first one.

    Any number of processes gives the same batches, unless something is streamed. One that sends
    nothing for ``timeout`` seconds is given up. The order also depends on what ``about`` says.
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

    def _begin(self) -> Any:
        last: Any = self._iterator  # whose processes go on
        if last is not None:
            # What they were asked for, though the epoch was cut short: torch has no patience there.
            last._sampler_iter = iter(())
            for _ in self._checked(last):
                pass
        return super()._begin()

    def _checked(self, batches: Iterator[Any]) -> Iterator[Sample]:
        waited = 0.0
        while True:
            _waiting.append(time.monotonic() - waited)
            try:
                batch = next(batches, None)
            except (KeyboardInterrupt, SystemExit):
                # torch would wait five seconds for each of those that are stuck.
                for worker in getattr(batches, "_workers", ()):
                    worker.terminate()
                raise
            except RuntimeError as error:
                if "DataLoader" not in str(error):  # a fault of ours keeps its traceback
                    raise
                waited += _TICK
                if "timed out" in str(error) and waited < self.patience:
                    continue  # all of them live, so one may just be slow
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
        """What the order of batches depends on; the position itself is the trainer's."""
        return dict(self.about)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare with the interrupted run, and say what will make the order another one."""
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
