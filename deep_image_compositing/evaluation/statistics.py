"""What a table may claim, of the bench and of the study: intervals, wins, Friedman's test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deep_image_compositing.extras import import_extra

DRAWS = 10_000  # resamples of the bootstrap
LEVEL = 0.95  # of all intervals
_AT_ONCE = 4_000_000  # indices that are drawn at a time: 32 MB of them


def require(feature: str, extra: str = "evaluate") -> Any:
    """``scipy.stats`` for ``feature``; MissingExtraError names the extra that brings it."""
    return import_extra("scipy.stats", feature, extra)


@dataclass(frozen=True)
class Difference:
    """By how much one method's mean differs from another's on the same items."""

    mean: float  # of first - second; NaN without an item that both have
    low: float  # ends of its 95 % interval
    high: float
    count: int  # items that both have a number for

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(values: ArrayLike) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one number an item, (N,); NaN are left out.

    The same numbers always give the same one. Both ends are the number itself when N is 1, and NaN
    when there is none.
    """
    numbers = np.asarray(values, np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if numbers.size < 2:
        only = float(numbers[0]) if numbers.size else float("nan")
        return only, only
    return _bootstrap((numbers,), np.mean)


def ratio_interval(parts: ArrayLike, wholes: ArrayLike) -> tuple[float, float]:
    """The same of the mean of ``parts`` by that of ``wholes``, both (N,), item by item."""
    above, below = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    nothing = (below == 0).mean() ** below.size if below.size else 1  # chance of a draw of zeros
    if above.size < 2 or nothing > (1 - LEVEL) / 4:
        only = float(above.sum() / below.sum()) if below.sum() > 0 else float("nan")
        return only, only
    return _bootstrap((above, below), _ratio)


def _ratio(parts: NDArray[Any], wholes: NDArray[Any], axis: int) -> NDArray[Any]:
    return parts.mean(axis) / np.maximum(wholes.mean(axis), np.finfo(np.float32).tiny)


def _bootstrap(numbers: tuple[NDArray[Any], ...], figure: Any) -> tuple[float, float]:
    interval = require("a bootstrap interval").bootstrap(
        numbers, figure, n_resamples=DRAWS, batch=max(1, _AT_ONCE // numbers[0].size),
        paired=len(numbers) > 1, vectorized=True, confidence_level=LEVEL, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def paired_difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """How far ``first`` lies above ``second``, both (N,), item by item; NaN in either is left out.

    What makes one picture harder than another cancels: the interval is narrower than of two means.
    """
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    gaps = gaps[~np.isnan(gaps)]
    mean = float(gaps.mean()) if gaps.size else float("nan")
    return Difference(mean, *bootstrap_interval(gaps), int(gaps.size))


def wins(
    table: Mapping[str, Sequence[float]], better: Literal["higher", "lower"]
) -> dict[str, float]:
    """On how many items each method is the best; those that tie share the win, NaN never wins.

    The table has one number an item for each method, in the same order of items.
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

    Scores are (N, K), N items by K methods, at least three; which end is good does not matter.
    """
    table = np.asarray(scores, np.float64)
    if (table == table[:, :1]).all():  # nothing differs, where scipy divides 0 by 0
        return 0.0, 1.0
    result = require("Friedman's test", "study").friedmanchisquare(*table.T)
    return float(result.statistic), float(result.pvalue)
