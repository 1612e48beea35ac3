"""What a table may claim: intervals by the bootstrap, wins, and the Friedman test.

The bench and the user study call these. All numbers that are drawn depend on ``seed`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from deep_image_compositing.errors import UsageError

_AT_ONCE = 4_000_000
"""Numbers that the bootstrap draws at once: 16 MB of them."""


@dataclass(frozen=True)
class Difference:
    """By how much one method's mean differs from another's on the same items.

    Attributes:
        mean: of the differences ``first - second``; NaN without an item that both have.
        low: lower end of its interval.
        high: upper end of its interval.
        count: items that both have a number for.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of the mean, by the percentiles of means of items drawn anew.

    Args:
        values: one number an item, (N,); NaN are left out.
        level: probability that the interval is to cover, in (0, 1).
        draws: how many times N items are drawn with replacement, at least 1.
        seed: of the draws, at least 0.

    Returns:
        Lower and upper end; both are the one number there is when N is 1, NaN when there is none.

    Raises:
        UsageError: for ``values`` that are no row of numbers, or ``level``, ``draws`` or
            ``seed`` out of range.

    Source:
        Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    numbers = _row(values)
    numbers = numbers[~np.isnan(numbers)]
    if not 0 < level < 1:
        raise UsageError(f"level is a probability between 0 and 1, got {level}")
    if draws < 1:
        raise UsageError(f"draws is a count of at least 1, got {draws}")
    if seed < 0:
        raise UsageError(f"seed is a whole number of at least 0, got {seed}")
    if numbers.size == 0:
        return float("nan"), float("nan")
    means = np.concatenate([numbers[index].mean(1) for index in _drawn(numbers.size, draws, seed)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    first: ArrayLike, second: ArrayLike, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Difference:
    """How far ``first`` lies above ``second`` on the same items, with a bootstrap interval.

    Items are drawn, not numbers: what makes one picture harder than another cancels, so the
    interval is narrower than that of two means apart.

    Args:
        first: one number an item, (N,).
        second: the same items, in the same order; an item that is NaN in either is left out.
        level: as for :func:`bootstrap_interval`, and so ``draws`` and ``seed``.
        draws: see there.
        seed: see there.

    Raises:
        UsageError: when the two differ in length, or as :func:`bootstrap_interval`.
    """
    one, other = _row(first), _row(second)
    if one.size != other.size:
        raise UsageError(
            f"a paired difference needs the same items twice, got {one.size} and {other.size}"
        )
    gaps = one - other
    gaps = gaps[~np.isnan(gaps)]
    low, high = bootstrap_interval(gaps, level, draws, seed)
    mean = float(gaps.mean()) if gaps.size else float("nan")
    return Difference(mean, low, high, int(gaps.size))


def wins(
    table: Mapping[str, Sequence[float]], better: Literal["higher", "lower"]
) -> dict[str, float]:
    """On how many items each method is the best; those that tie for best share the win.

    Args:
        table: one number an item for each method, in the same order of items; NaN never wins.
        better: which numbers are the good ones.

    Returns:
        Wins by method, in the order of ``table``; they add up to the number of items that any
        method has a number for.

    Raises:
        UsageError: for rows of different lengths, or another ``better``.
    """
    if better not in ("higher", "lower"):
        raise UsageError(f"better is 'higher' or 'lower', got {better!r}")
    rows = {name: _row(values) for name, values in table.items()}
    lengths = {name: row.size for name, row in rows.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"every method needs a number (or NaN) for every item, got {lengths}")
    if not rows:
        return {}
    scores = np.stack(list(rows.values()))
    scores = np.where(np.isnan(scores), -np.inf, scores if better == "higher" else -scores)
    best = (scores == scores.max(0)) & (scores > -np.inf)
    shares = best / np.maximum(best.sum(0), 1)
    return {name: float(share) for name, share in zip(rows, shares.sum(1), strict=True)}


def friedman(scores: ArrayLike) -> tuple[float, float]:
    """Friedman's test of whether methods differ at all, over items that all of them have.

    Each item's scores are ranked; were the methods alike, all mean ranks would be. Ties get their
    mean rank, and the statistic is corrected for them.

    Args:
        scores: (N, K), N items by K methods; an item with a NaN is left out. Which end is good
            does not matter.

    Returns:
        The statistic and the probability ``p`` of one at least as large among equal methods, by
        its chi-square approximation (K - 1 degrees of freedom; rough for fewer than about ten
        items). When every item ties all methods nothing differs: 0 and 1.

    Raises:
        UsageError: for fewer than two methods, or no whole item.

    Source:
        Friedman, "The use of ranks to avoid the assumption of normality implicit in the analysis
        of variance", 1937; the correction as in Conover, "Practical Nonparametric Statistics".
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise UsageError(f"scores are items by at least two methods, got shape {table.shape}")
    table = table[~np.isnan(table).any(1)]
    items, methods = table.shape
    if items == 0:
        raise UsageError("no item has a score of every method")
    below = (table[:, None, :] < table[:, :, None]).sum(2)
    equal = (table[:, None, :] == table[:, :, None]).sum(2)
    ranks = below + (equal + 1) / 2
    middle = (methods + 1) / 2
    # With no ties the spread of one item's ranks is K(K² − 1)/12: the textbook's formula.
    spread = ((ranks - middle) ** 2).sum() / (methods - 1)
    if spread == 0:
        return 0.0, 1.0
    statistic = float(((ranks.sum(0) - items * middle) ** 2).sum() / spread)
    half = torch.tensor([(methods - 1) / 2, statistic / 2], dtype=torch.float64)
    return statistic, float(torch.special.gammaincc(half[0], half[1]))


def _row(values: ArrayLike) -> NDArray[np.float64]:
    row = np.asarray(values, np.float64)
    if row.ndim != 1:
        raise UsageError(f"expected a row of numbers, one an item, got shape {row.shape}")
    return row


def _drawn(count: int, draws: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Indices (draws, count) of items drawn with replacement, in parts that fit into memory."""
    rows = max(1, _AT_ONCE // count)
    for part in range(-(-draws // rows)):
        yield _part(count, min(rows, draws - part * rows), seed, part)


@lru_cache(maxsize=4)
def _part(count: int, rows: int, seed: int, part: int) -> NDArray[np.int32]:
    # A report asks for the same draws hundreds of times, and drawing takes most of the time.
    generator = np.random.default_rng((seed, part))
    return generator.integers(0, count, (rows, count), dtype=np.int32)
