"""The sampler: any batch at once, every sample once a pass, few shards at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from deep_image_compositing.data import sampler
from deep_image_compositing.data.datasets import FolderDataset, Mixture, ShardDataset
from deep_image_compositing.data.folders import Pair
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.sampler import WINDOW, Order, TrainingSampler, seed_of


def mixture(*parts: tuple[float, Sequence[int]]) -> Mixture:
    """Shards of so many samples each, by weight; nothing of them is ever read."""
    return Mixture(
        [
            ShardDataset(Source("x", weight), ["x.tar"] * len(counts), (), [*counts])
            for weight, counts in parts
        ]
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("counts", [[50, 50, 20], [1], [7] * 40, [0, 3, 0]])
def test_every_position_of_every_shard_is_drawn_once_a_pass(counts: list[int], ranks: int) -> None:
    total, mixtures = sum(counts), {"a": mixture((1, counts))}
    passes, batch_size = 4, 2
    length = -(-passes * total // (ranks * batch_size))
    samplers = [TrainingSampler(mixtures, batch_size, length, 1, r, ranks) for r in range(ranks)]
    draws = [draw for batches in zip(*samplers, strict=True) for b in batches for draw in b]
    order = [draw.items["a"] for draw in draws]
    for turn in range(passes):
        assert sorted(order[turn * total : (turn + 1) * total]) == list(range(total))
    assert len({draw.seed for draw in draws}) == len(draws)
    if total > 20:
        assert order[:total] != order[total : 2 * total]


def test_a_batch_is_told_at_once_and_an_epoch_goes_on_where_it_stood() -> None:
    mixtures = {"a": mixture((3, [9] * 40), (1, [5])), "b": mixture((1, [6]))}
    whole = TrainingSampler(mixtures, 3, 7, seed=5, rank=1, ranks=2)
    batches = [whole.batch(n) for n in range(4000)]
    for n in (0, 1, 3999, 17):  # past several windows and passes, and back again
        assert TrainingSampler(mixtures, 3, 7, seed=5, rank=1, ranks=2).batch(n) == batches[n]
    for start in (0, 3, 7, 20):
        resumed = TrainingSampler(mixtures, 3, 7, 5, 1, 2, position=lambda: start)  # noqa: B023
        assert list(resumed) == batches[start : start - start % 7 + 7]
    # A trainer that stops each epoch after 5 of the 7 batches finds as many in the next one.
    for start in (5, 10):
        short = TrainingSampler(mixtures, 3, 7, 5, 1, 2, lambda: start, trained=5)  # noqa: B023
        assert list(short) == batches[start : start + 7]
    assert TrainingSampler(mixtures, 3, 7, seed=6, rank=1, ranks=2).batch(0) != batches[0]


def test_sources_have_their_shares_by_weight() -> None:
    mixed = mixture((3, [100]), (1, [4]), (0, [10]), (1e-6, [10]))
    order = Order(mixed, 0)
    parts = Counter(mixed.part(order[n]) for n in range(3 * WINDOW))
    assert parts == {0: 3 * 3071, 1: 3 * 1024, 3: 3}
    assert len({order[n] for n in range(WINDOW)} & set(range(104))) == 104


def test_few_shards_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "BLOCK", 4)
    order = Order(mixture((1, [10] * 20)), 0)
    shards = [order[n] // 10 for n in range(200)]
    blocks = [set(shards[i : i + 40]) for i in range(0, 200, 40)]
    assert all(len(block) == 4 for block in blocks)
    assert set().union(*blocks) == set(range(20))
    assert len(set(shards[:12])) > 1  # and mixed


def test_folders_are_shuffled_whole() -> None:
    pairs = [Pair(Path(f"{i}.png"), None) for i in range(30)]
    order = Order(Mixture([FolderDataset(Source("x"), pairs)]), 0)
    assert sorted(order[n] for n in range(30)) == list(range(30)) != [order[n] for n in range(30)]


def test_seeds_spread() -> None:
    seeds = {seed_of(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert max(seeds) < 2**63
    assert seed_of(0, 1) == seed_of(0, 1) != seed_of(1, 0)
