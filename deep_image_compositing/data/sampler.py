"""Which samples are in which batch: a pure function of seed, rank and position.

Nothing is counted along: batch *n* of a rank can be told at once, so a run goes on after a kill as
if it had not been interrupted. Training goes through each dataset in passes: in a pass, every
sample is drawn once by some rank. An evaluation has each sample once on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from deep_image_compositing.data.datasets import Mixture

WINDOW = 4096
"""Draws among which each dataset of a mixture has its share exactly."""

BLOCK = 16
"""Shards among whose samples is shuffled: so many are read at a time."""


def seed_of(*numbers: int) -> int:
    """One seed (63 bits) of several numbers; the same everywhere."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return int(state[0]) << 31 ^ int(state[1])


@dataclass(frozen=True)
class Draw:
    """What one sample of a batch is made of.

    Attributes:
        seed: of all that is random about it.
        items: by name, the index of the item in its mixture.
        valid: false where it only fills an evaluation's batch.
    """

    seed: tuple[int, ...]
    items: Mapping[str, int]
    valid: bool = True


class Order:
    """In which order the samples of a mixture are drawn, endlessly: ``order[number]`` is an index.

    Among ``WINDOW`` draws, each dataset has its share by weight, rounded, but at least one. Its
    own draws go through it in passes: shards in any order, ``BLOCK`` of them at a time, their
    samples shuffled.

    Args:
        mixture: what is drawn from.
        seed: of the order.
    """

    def __init__(self, mixture: Mixture, *seed: int) -> None:
        self._seed = seed
        self._starts = mixture.starts
        self._shards = [np.array(dataset.blocks()) for dataset in mixture.datasets]
        shares = mixture.weights() * WINDOW
        quotas = np.maximum(shares.astype(int), shares > 0)
        short = WINDOW - int(quotas.sum())
        quotas[np.argsort(quotas - shares)[: max(short, 0)]] += 1
        quotas[np.argmax(quotas)] += min(short, 0)
        self._quotas = quotas
        self._known: dict[Any, tuple[Any, Any]] = {}

    def __getitem__(self, number: int) -> int:
        window, slot = divmod(number, WINDOW)
        parts, ranks = self._once("window", window, self._window)
        part = int(parts[slot])
        turn, place = divmod(
            window * int(self._quotas[part]) + int(ranks[slot]), int(self._shards[part].sum())
        )
        _, ends = self._once(("pass", part), (part, turn), self._pass)
        block = int(np.searchsorted(ends, place, "right"))
        samples = self._once(("block", part), (part, turn, block), self._block)
        return self._starts[part] + int(samples[place - (ends[block - 1] if block else 0)])

    def _once(self, slot: Any, key: Any, make: Callable[[Any], Any]) -> Any:
        """What ``make`` makes of ``key``; the last of each slot is remembered."""
        known, value = self._known.get(slot, (None, None))
        if known != key:
            value = make(key)
            self._known[slot] = key, value
        return value

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, *numbers])

    def _window(self, window: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The dataset of each draw of a window, and how many of it there were before."""
        parts = self._rng(0, window).permutation(
            np.repeat(np.arange(len(self._quotas)), self._quotas)
        )
        ranks = np.empty_like(parts)
        for part, quota in enumerate(self._quotas):
            ranks[parts == part] = np.arange(quota)
        return parts, ranks

    def _pass(self, key: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The shards in the order of a pass, and how many samples each block ends after."""
        part, turn = key
        order = self._rng(1, part, turn).permutation(len(self._shards[part]))
        sums = np.cumsum(self._shards[part][order])
        return order, sums[np.minimum(np.arange(BLOCK, len(sums) + BLOCK, BLOCK), len(sums)) - 1]

    def _block(self, key: tuple[int, int, int]) -> NDArray[Any]:
        """The samples of a block, by their index in the dataset, in the order of a pass."""
        part, turn, block = key
        order, _ = self._once(("pass", part), (part, turn), self._pass)
        shards = order[block * BLOCK : (block + 1) * BLOCK]
        starts = np.cumsum(self._shards[part]) - self._shards[part]
        samples = [np.arange(starts[i], starts[i] + self._shards[part][i]) for i in shards]
        return self._rng(2, part, turn, block).permutation(np.concatenate(samples))


class TrainingSampler(DistributedSampler[list[Draw]]):
    """The batches of one rank, epoch after epoch, from wherever the run stands.

    Args:
        mixtures: where each item of a sample comes from, by name.
        batch_size: samples a batch.
        length: batches an epoch.
        seed: of everything random.
        rank: of this process among all that train.
        ranks: how many these are.
        position: batches that the run has trained on so far, asked at the start of each epoch.
    """

    def __init__(
        self,
        mixtures: Mapping[str, Mixture],
        batch_size: int,
        length: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(range(length), ranks, rank)  # type: ignore[arg-type]
        self._orders = {
            name: Order(mixture, seed, i) for i, (name, mixture) in enumerate(mixtures.items())
        }
        self.batch_size = batch_size
        self.length = length
        self.seed = seed
        self._position = position

    def __len__(self) -> int:
        return self.length

    def batch(self, number: int) -> list[Draw]:
        """Batch ``number`` of the whole run."""
        first = (number * self.num_replicas + self.rank) * self.batch_size
        return [
            Draw((self.seed, 0, n), {name: order[n] for name, order in self._orders.items()})
            for n in range(first, first + self.batch_size)
        ]

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self._position()
        return map(self.batch, range(first, first - first % self.length + self.length))


class EvaluationSampler(DistributedSampler[list[Draw]]):
    """The batches of one rank, of all samples exactly once over all ranks.

    Ranks have the same number of batches; what fills the last ones is not ``valid``.

    Args:
        mixtures: where each item of a sample comes from; of the first, every sample is drawn.
        batch_size: samples a batch.
        repeats: samples that are made of each item, with crops of their own.
        seed: of everything random.
        rank: of this process.
        ranks: number of processes.
    """

    def __init__(
        self,
        mixtures: Mapping[str, Mixture],
        batch_size: int,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        (self._name, main), *_ = mixtures.items()
        self.total = len(main) * repeats
        super().__init__(range(self.total), ranks, rank)  # type: ignore[arg-type]
        self.mixtures = mixtures
        self.batch_size = batch_size
        self.repeats = repeats
        self.seed = seed
        # Ranks take blocks of equal size; the last ones may hang over the end.
        self._share = -(-self.total // ranks)

    def __len__(self) -> int:
        return -(-self._share // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for start in range(0, self._share, self.batch_size):
            stop = min(start + self.batch_size, self._share)
            yield [self._draw(self.rank * self._share + n) for n in range(start, stop)]

    def _draw(self, number: int) -> Draw:
        rng = np.random.default_rng([self.seed, 2, number])
        items = {name: int(rng.integers(len(mixture))) for name, mixture in self.mixtures.items()}
        items[self._name] = number % self.total // self.repeats
        return Draw((self.seed, 1, number), items, number < self.total)
