"""Intervals, wins and Friedman's test: what is left out, and cases worked out by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from deep_image_compositing.errors import MissingExtraError
from deep_image_compositing.evaluation import statistics
from deep_image_compositing.evaluation.statistics import (
    Difference,
    bootstrap_interval,
    friedman,
    paired_difference,
    ratio_interval,
    wins,
)

NAN = math.nan


def test_an_interval_covers_the_mean_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).gamma(2, size=40)
    low, high = bootstrap_interval(values)
    spread = values.std() / math.sqrt(values.size)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * spread, values.mean() + 1.96 * spread), abs=0.2 * spread
    )
    monkeypatch.setattr(statistics, "_AT_ONCE", 1000)  # in parts, where memory is short
    assert bootstrap_interval(values) == (low, high)
    assert ratio_interval(3 * values, values) == pytest.approx((3, 3))
    low, high = ratio_interval([*values, 0], [*values[::-1], 0])  # one was not off at all
    assert 0.4 < low < 1 < high < 2.5


def test_intervals_of_few_numbers() -> None:
    assert bootstrap_interval([3.5]) == (3.5, 3.5)
    assert bootstrap_interval([2.0, 2.0]) == (2, 2)
    assert ratio_interval([1.0], [2.0]) == (0.5, 0.5)
    assert ratio_interval([1.0, 0.0], [2.0, 0.0]) == (0.5, 0.5)  # every fourth draw divides by 0


def test_a_paired_difference_sees_what_two_means_do_not() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(30, 5, 50)
    first, second = hard + 0.5 + generator.normal(0, 0.3, 50), hard
    found = paired_difference(first, second)
    assert found.mean == pytest.approx((first - second).mean())
    assert found.low < found.mean < found.high < found.low + 0.3
    assert (found.count, found.clear) == (50, True)
    assert bootstrap_interval(first)[0] < second.mean() < bootstrap_interval(first)[1]
    assert not paired_difference(generator.normal(0, 1, 20), np.zeros(20)).clear


def test_a_paired_difference_leaves_out_what_one_of_them_lacks() -> None:
    assert paired_difference([1.0, NAN, 4.0], [0.0, 1.0, NAN]) == Difference(1, 1, 1, 1)
    nothing = paired_difference([NAN], [1.0])
    assert math.isnan(nothing.mean)
    assert (nothing.count, nothing.clear) == (0, False)


def test_wins_by_hand() -> None:
    table = {"a": [1.0, 5.0, 2.0, NAN], "b": [2.0, 5.0, NAN, NAN], "c": [3.0, 1.0, 1.0, NAN]}
    assert wins(table, "higher") == {"a": 1.5, "b": 0.5, "c": 1}
    assert wins(table, "lower") == {"a": 1, "b": 0, "c": 2}
    assert wins({}, "lower") == {}
    assert wins({"a": [], "b": []}, "lower") == {"a": 0, "b": 0}


def test_friedman_by_hand() -> None:
    """Four sets, three methods, always in one order: Q = 12/(4·3·4)·(4² + 8² + 12²) − 3·4·4 = 8."""
    statistic, p = friedman([[1, 2, 3], [1, 2, 8], [2, 3, 8], [1, 3, 8]])
    assert statistic == pytest.approx(8)
    assert p == pytest.approx(math.exp(-4))  # chi-square with two degrees of freedom
    assert friedman([[1, 1, 1], [8, 8, 8]]) == (0, 1)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    for call, extra in ((bootstrap_interval, "evaluate"), (friedman, "study")):
        with pytest.raises(MissingExtraError, match=rf"needs scipy.*\[{extra}\]'"):
            call([[1, 2, 3], [3, 2, 1]])
