"""Samplers: the samples of each batch as a pure function of seed, rank and position.

Any batch can be computed directly, so a resumed run sees the samples of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from deep_image_compositing.data.datasets import Mixture

WINDOW = 4096  # consecutive draws in which each dataset of a mixture has exactly its share
BLOCK = 16  # shards that are read, and their samples shuffled, together


def seed_of(*numbers: int) -> int:
    """Combine several numbers into one seed (63 bits), the same on every platform."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return int(state[0]) << 31 ^ int(state[1])


@dataclass(frozen=True)
class Draw:
    """The seed and items of one sample of a batch."""

    seed: tuple[int, ...]
    items: Mapping[str, int]  # index in each mixture, by name
    valid: bool = True  # False for padding of an evaluation's batch


class Order:
    """The endless order of draws from a mixture: ``order[number]`` is the index of a sample.

    In every ``WINDOW`` draws, each dataset has its share by weight, rounded, but at least one. The
    draws of a dataset form passes, each of which draws every sample once over all ranks: shards
    are permuted, and the samples of each ``BLOCK`` of shards are shuffled.
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
        # Draws advance within each dataset, so the most recent results are needed again.
        self._window = lru_cache(1)(self._draw_window)
        self._pass = lru_cache(2 * len(quotas))(self._draw_pass)
        self._block = lru_cache(2 * len(quotas))(self._draw_block)

    def __getitem__(self, number: int) -> int:
        window, slot = divmod(number, WINDOW)
        parts, ranks = self._window(window)
        part = int(parts[slot])
        drawn = window * int(self._quotas[part]) + int(ranks[slot])
        turn, position = divmod(drawn, int(self._shards[part].sum()))
        _, ends = self._pass(part, turn)
        block = int(np.searchsorted(ends, position, "right"))
        start = int(ends[block - 1]) if block else 0
        return self._starts[part] + int(self._block(part, turn, block)[position - start])

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, *numbers])

    def _draw_window(self, window: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The dataset of each draw of a window, and the draw's rank within that dataset."""
        parts = self._rng(0, window).permutation(
            np.repeat(np.arange(len(self._quotas)), self._quotas)
        )
        ranks = np.empty_like(parts)
        for part, quota in enumerate(self._quotas):
            ranks[parts == part] = np.arange(quota)
        return parts, ranks

    def _draw_pass(self, part: int, turn: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The shards in the order of a pass, and the cumulative samples after each block."""
        order = self._rng(1, part, turn).permutation(len(self._shards[part]))
        sums = np.cumsum(self._shards[part][order])
        return order, sums[np.minimum(np.arange(BLOCK, len(sums) + BLOCK, BLOCK), len(sums)) - 1]

    def _draw_block(self, part: int, turn: int, block: int) -> NDArray[Any]:
        """The shuffled samples of a block, by their index in the dataset."""
        order, _ = self._pass(part, turn)
        shards = order[block * BLOCK : (block + 1) * BLOCK]
        starts = np.cumsum(self._shards[part]) - self._shards[part]
        samples = [np.arange(starts[i], starts[i] + self._shards[part][i]) for i in shards]
        return self._rng(2, part, turn, block).permutation(np.concatenate(samples))


class TrainingSampler(DistributedSampler[list[Draw]]):
    """The training batches of one ``rank``, ``length`` per epoch.

    Each sample has an item of every mixture. ``position`` returns, at the start of each epoch, the
    number of batches that the run has trained on so far; ``trained`` is how many batches of an
    epoch it trains on, None for all.
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
        trained: int | None = None,
    ) -> None:
        super().__init__(range(length), ranks, rank)  # type: ignore[arg-type]
        self._orders = {
            name: Order(mixture, seed, i) for i, (name, mixture) in enumerate(mixtures.items())
        }
        self.batch_size, self.length = batch_size, length
        self.seed, self._position, self._trained = seed, position, trained or length

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
        return map(self.batch, range(first, first - first % self._trained + self.length))


class EvaluationSampler(DistributedSampler[list[Draw]]):
    """The evaluation batches of one ``rank``; all ranks together cover the first mixture once.

    Every sample is drawn ``repeats`` times, with different crops. All ranks have the same number
    of batches; padding is not ``valid``.
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
        self.mixtures, self.repeats = mixtures, repeats
        self.batch_size, self.seed = batch_size, seed
        # Ranks take blocks of equal size, the last of which may exceed the total.
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
