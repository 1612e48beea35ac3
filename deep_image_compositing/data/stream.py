"""The loaders: batches as a function of seed, rank and position, so that runs resume exactly.

Training batches are numbered through the whole run. What is in batch *n* of a rank depends on the
seed, the rank, the number of loader processes and *n* alone, so a loader that starts at any
position makes what an uninterrupted one would have made there. Evaluation batches hold each sample
exactly once on any number of ranks and loader processes; ranks are padded to the same number of
batches, and what is padding says so in ``valid``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from deep_image_compositing.data.feeds import Mix, Tolerance, TooManyError
from deep_image_compositing.data.items import UNREADABLE, Item
from deep_image_compositing.data.packing import Packed
from deep_image_compositing.data.transfer import kill_programs
from deep_image_compositing.errors import CompositingError, DataError, UsageError

Sample = dict[str, Tensor]
Draw = Callable[[np.random.Generator, Mapping[str, Item], bool], Sample]
"""Makes an 8-bit sample of items; the last argument says whether it is for evaluation."""

POOL = 64
"""Items beside the main one from which an evaluation sample's backgrounds are drawn."""

_log = logging.getLogger("deep_image_compositing")
_ERROR = "error"
_MISUSE = "misuse"
_TICK = 5
"""Seconds after which torch looks whether its loader processes are alive."""
_waiting: list[float] = []
"""Since when this process waits for a batch, if it does."""


def seconds_without_data() -> float:
    """For how long this process has been waiting for a batch now; 0 when it is not."""
    return time.monotonic() - _waiting[-1] if _waiting else 0.0


def sent(error: Exception) -> dict[str, Any]:
    """What a loader process sends in the place of a batch.

    Were the error raised there, it would reach the user as a traceback.
    """
    return {_ERROR: str(error), _MISUSE: isinstance(error, UsageError)}


def raise_sent(batch: Mapping[str, Any]) -> None:
    """Raise what a loader process has sent in the place of a batch, if it has.

    Raises:
        UsageError: it was one there.
        DataError: it was anything else.
    """
    if _ERROR in batch:
        raise (UsageError if batch[_MISUSE] else DataError)(batch[_ERROR])


def _collate(rows: list[Sample], **whole: Tensor) -> Sample | Packed:
    """The batch of samples and of what belongs to all of them, packed in a loader process."""
    if get_worker_info() is not None:
        return Packed.of(rows, whole)
    batch: Sample = default_collate(rows)
    return {**batch, **whole}


def seed_of(*numbers: int) -> int:
    """One seed (63 bits) of several numbers; the same everywhere."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return int(state[0]) << 31 ^ int(state[1])


class TrainingStream(IterableDataset[Sample]):
    """The batches of one epoch of one rank, from a position on.

    Args:
        feeds: where each item of a sample comes from, by name; the first is the main one.
        draw: makes a sample of them.
        batch_size: samples a batch.
        length: batches an epoch.
        seed: of everything random.
        rank: of this process among all that train.
        tolerance: share of samples that may be unreadable.
    """

    def __init__(
        self,
        feeds: Mapping[str, Mix],
        draw: Draw,
        batch_size: int,
        length: int,
        seed: int = 0,
        rank: int = 0,
        tolerance: float = 0.01,
    ) -> None:
        self.feeds = dict(feeds)
        self.draw = draw
        self.batch_size = batch_size
        self.length = length
        self.seed = seed
        self.rank = rank
        self.tolerance = Tolerance("samples", tolerance)
        # Shared memory, because loader processes outlive an epoch and read it at the next one.
        self.position = torch.zeros((), dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, first = divmod(int(self.position), self.length)
        # Batch b belongs to line b modulo workers. The loader asks worker 0 first, so after an
        # interruption the lines move round to let it begin with the batch that comes next.
        line = (first + worker) % workers
        random = np.random.default_rng([self.seed, epoch, self.rank, line])
        draws = {name: mix.draw(random.spawn(1)[0]) for name, mix in self.feeds.items()}
        try:
            for number in range(line, self.length, workers):
                chosen = [
                    {name: next(draw) for name, draw in draws.items()}
                    for _ in range(self.batch_size)
                ]
                if number >= first:
                    yield self._batch(chosen, [self.seed, epoch, self.rank, number])
        except (CompositingError, OSError) as error:
            yield sent(error)

    def _batch(self, chosen: list[dict[str, Item]], seed: list[int]) -> Sample | Packed:
        samples: list[Sample | None] = []
        for i, items in enumerate(chosen):
            try:
                samples.append(self.draw(np.random.default_rng([*seed, i]), items, False))
                self.tolerance.passed()
            except UNREADABLE as error:
                self.tolerance.failed(next(iter(items.values())).name, error)
                samples.append(None)
        # A neighbour stands in, so that the samples to come stay the same with and without a
        # bad one before them.
        spare = next((s for s in samples if s is not None), None) or self._another(seed)
        rows = [spare if s is None else s for s in samples]
        return _collate(rows, seed=torch.tensor(seed_of(*seed)))

    def _another(self, seed: list[int]) -> Sample:
        """A sample for a batch without a readable one, drawn apart from all the others."""
        random = np.random.default_rng([*seed, self.batch_size])
        draws = {name: mix.draw(random.spawn(1)[0]) for name, mix in self.feeds.items()}
        while True:  # the tolerance ends it
            items = {name: next(draw) for name, draw in draws.items()}
            try:
                sample = self.draw(random, items, False)
            except UNREADABLE as error:
                self.tolerance.failed(next(iter(items.values())).name, error)
            else:
                self.tolerance.passed()
                return sample


class EvaluationStream(IterableDataset[Sample]):
    """The batches of one rank, of all samples exactly once over all ranks.

    Batches have ``valid`` (B,), false where a row only pads, and ``seed`` (B,), one a sample.

    Args:
        main: the samples.
        others: items beside the main one, by name, drawn from the first few of each.
        name: of the main item.
        draw: makes a sample of them.
        batch_size: samples a batch.
        repeats: samples that are made of each item, with crops of their own.
        seed: of everything random.
        rank: of this process.
        ranks: number of processes.
        tolerance: share of samples that may be unreadable.
    """

    def __init__(
        self,
        main: Mix,
        others: Mapping[str, Mix],
        name: str,
        draw: Draw,
        batch_size: int,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        tolerance: float = 0.01,
    ) -> None:
        self.main = main
        self.others = dict(others)
        self.name = name
        self.draw = draw
        self.batch_size = batch_size
        self.repeats = repeats
        self.seed = seed
        self.tolerance = Tolerance("samples", tolerance)
        self.total = len(main) * repeats
        # Ranks take blocks of equal size; the last ones may hang over the end.
        self.share = -(-self.total // ranks)
        self.start = rank * self.share
        self.length = -(-self.share // batch_size)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first, last = (self.length * w // workers for w in (worker, worker + 1))
        try:
            pools = {name: mix.pool(POOL) for name, mix in self.others.items()}
            yield from self._batches(first, last, pools)
        except (CompositingError, OSError) as error:
            yield sent(error)

    def _batches(
        self, first: int, last: int, pools: Mapping[str, list[Item]]
    ) -> Iterator[Sample | Packed]:
        low = self.start + first * self.batch_size
        high = min(self.start + min(last * self.batch_size, self.share), self.total)
        samples = self._samples(low, high, pools)
        padding: Sample | None = None
        for number in range(first, last):
            stop = min((number + 1) * self.batch_size, self.share)
            indices = range(self.start + number * self.batch_size, self.start + stop)
            rows = [next(samples) if i < self.total else None for i in indices]
            padding = next((row for row in rows if row is not None), padding)
            if padding is None:
                padding = self._any_sample(pools)
            yield _collate(
                [padding if row is None else row for row in rows],
                seed=torch.tensor([seed_of(self.seed, i) for i in indices]),
                valid=torch.tensor([row is not None for row in rows]),
            )

    def _samples(
        self, low: int, high: int, pools: Mapping[str, list[Item]]
    ) -> Iterator[Sample | None]:
        if low >= high:
            return
        items = self.main.read(low // self.repeats, -(-high // self.repeats))
        for index, item in enumerate(items, start=low // self.repeats):
            for i in range(max(low, index * self.repeats), min(high, (index + 1) * self.repeats)):
                yield None if item is None else self._sample(i, item, pools)

    def _sample(self, i: int, item: Item, pools: Mapping[str, list[Item]]) -> Sample | None:
        rng = np.random.default_rng([self.seed, i])
        items = {self.name: item}
        items |= {name: pool[int(rng.integers(len(pool)))] for name, pool in pools.items()}
        try:
            sample = self.draw(rng, items, True)
        except UNREADABLE as error:
            self.tolerance.failed(item.name, error)
            return None
        self.tolerance.passed()
        return sample

    def _any_sample(self, pools: Mapping[str, list[Item]]) -> Sample:
        """Something of the right shape, for a rank that has nothing but padding."""
        for sample in self._samples(0, self.total, pools):
            if sample is not None:
                return sample
        raise TooManyError("there is no readable sample to evaluate on")


def start_worker(worker: int) -> None:
    """What every loader process does first."""
    # Batch systems and terminals signal all processes of a job; only the trainer is to act, and
    # needs its loaders until it has.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_trainer_says, daemon=True).start()
    # pymatting's threads are OpenMP's, as torch's are: in a process that was forked from one that
    # has used them, they would wait for each other forever.
    os.environ["NUMBA_NUM_THREADS"] = "1"
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(1)


def _end_when_the_trainer_says() -> None:
    """A SIGTERM of the trainer itself ends a loader process, as when it is stuck; so does its end.

    Were the programs that it reads from left alone, those that are stuck would stay for ever.
    """
    trainer = os.getppid()
    while os.getppid() == trainer:
        told = signal.sigtimedwait({signal.SIGTERM}, _TICK)
        if told is not None and told.si_pid == trainer:
            break
    kill_programs()
    os._exit(0)


class StreamLoader(DataLoader[Sample]):
    """A DataLoader over a stream, which knows its length and its position.

    Args:
        stream: a training or an evaluation stream.
        num_workers: loader processes; 0 loads in the calling process.
        position: batches that the run has trained on so far, asked at the start of each epoch.
        timeout: seconds after which a loader process that sends nothing is given up.
        about: what else the order depends on; a resumed run that differs in it is warned about.
    """

    def __init__(
        self,
        stream: TrainingStream | EvaluationStream,
        num_workers: int = 0,
        position: Callable[[], int] | None = None,
        timeout: float = 600.0,
        about: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            stream,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=_TICK if num_workers else 0,
            worker_init_fn=start_worker,
        )
        self.stream = stream
        self.position = position
        self.patience = timeout
        self.about = dict(about or {}, num_workers=num_workers)

    def __len__(self) -> int:
        return self.stream.length

    def __iter__(self) -> Any:
        if isinstance(self.stream, TrainingStream) and self.position is not None:
            self.stream.position.fill_(self.position())
        return self._checked(super().__iter__())

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
            if isinstance(batch, Packed):
                yield batch.unpack()
            else:
                raise_sent(batch)
                yield batch

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
        if changed:
            _log.warning("the resumed run will see other samples: %s", "; ".join(changed))
