"""Statistics of the bench and the user study: bootstrap intervals, wins, Friedman's test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deep_image_compositing.extras import import_extra

DRAWS = 10_000  # bootstrap resamples
LEVEL = 0.95  # confidence level of all intervals
_AT_ONCE = 4_000_000  # indices drawn at a time: 32 MB


@dataclass(frozen=True)
class Difference:
    """The mean difference of two methods on the same items."""

    mean: float  # of first - second; NaN if there is no item with both values
    low: float  # ends of the 95 % interval
    high: float
    count: int  # items with both values

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(values: ArrayLike) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values (N,), N >= 1; deterministic.

    Both ends are the value itself if there is one value.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.size == 1:
        return float(numbers[0]), float(numbers[0])
    return _bootstrap((numbers,), np.mean)


def ratio_interval(parts: ArrayLike, wholes: ArrayLike) -> tuple[float, float]:
    """The same for the ratio of the means of ``parts`` and ``wholes``, both (N,), paired."""
    above, below = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    all_zero = (below == 0).mean() ** below.size  # probability of such a draw
    if above.size == 1 or all_zero > (1 - LEVEL) / 4:
        ratio = float(above.sum() / below.sum())
        return ratio, ratio
    return _bootstrap((above, below), _ratio)


def _ratio(parts: NDArray[Any], wholes: NDArray[Any], axis: int) -> NDArray[Any]:
    return parts.mean(axis) / np.maximum(wholes.mean(axis), np.finfo(np.float32).tiny)


def _bootstrap(samples: tuple[NDArray[Any], ...], statistic: Any) -> tuple[float, float]:
    stats = import_extra("scipy.stats", "a bootstrap interval", "evaluate")
    interval = stats.bootstrap(
        samples, statistic, n_resamples=DRAWS, batch=max(1, _AT_ONCE // samples[0].size),
        paired=len(samples) > 1, vectorized=True, confidence_level=LEVEL, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def paired_difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """The mean of ``first - second``, both (N,), paired by item; NaN in either is ignored.

    How hard each item is cancels out, so the interval is narrower than those of the two means.
    """
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    gaps = gaps[~np.isnan(gaps)]
    if not gaps.size:
        return Difference(math.nan, math.nan, math.nan, 0)
    return Difference(float(gaps.mean()), *bootstrap_interval(gaps), int(gaps.size))


def wins(
    table: Mapping[str, Sequence[float]], better: Literal["higher", "lower"]
) -> dict[str, float]:
    """On how many items each method is best; ties share the win, NaN never wins.

    Args:
        table: each method's scores, in the same order of items.
        better: which scores are the better ones.
    """
    if not table:
        return {}
    scores = np.array([*table.values()], np.float64)
    scores = np.where(np.isnan(scores), -np.inf, scores if better == "higher" else -scores)
    best = (scores == scores.max(0)) & (scores > -np.inf)
    shares = (best / np.maximum(best.sum(0), 1)).sum(1)
    return {name: float(share) for name, share in zip(table, shares, strict=True)}


def friedman(scores: ArrayLike) -> tuple[float, float]:
    """Friedman's test of whether methods differ at all: the statistic and its p-value.

    Scores are (N, K): N items by K >= 3 methods.
    """
    table = np.asarray(scores, np.float64)
    if (table == table[:, :1]).all():  # scipy would divide 0 by 0
        return 0.0, 1.0
    stats = import_extra("scipy.stats", "Friedman's test", "study")
    result = stats.friedmanchisquare(*table.T)
    return float(result.statistic), float(result.pvalue)
