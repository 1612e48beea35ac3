"""Intervals, wins and the Friedman test, against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation import statistics
from deep_image_compositing.evaluation.statistics import (
    bootstrap_interval,
    friedman,
    paired_difference,
    wins,
)

NAN = math.nan


def test_an_interval_is_that_of_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).gamma(2, size=40)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    spread = values.std() / math.sqrt(values.size)
    assert bootstrap_interval(values) == pytest.approx(tuple(theirs), abs=0.06 * spread)
    low, high = bootstrap_interval(values, level=0.5)
    assert theirs.low < low < values.mean() < high < theirs.high


def test_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(1, 2, (200, 30))
    covered = [
        low <= 1 <= high for low, high in (bootstrap_interval(s, 0.9, 1000) for s in samples)
    ]
    assert 0.82 < np.mean(covered) < 0.95


def test_intervals_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, 2.0, 5.0, 4.0]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1, draws=101) != bootstrap_interval(values, draws=101)
    # Drawn in parts where they do not fit into memory at once.
    monkeypatch.setattr(statistics, "_AT_ONCE", 1000)
    low, high = bootstrap_interval(values, draws=9999)
    assert (low, high) == pytest.approx(bootstrap_interval(values, draws=30_000), abs=0.26)
    assert 1 <= low < 3 < high <= 5


def test_intervals_of_few_numbers() -> None:
    assert bootstrap_interval([NAN, 3.5, NAN]) == (3.5, 3.5)
    assert all(math.isnan(end) for end in bootstrap_interval([]))
    assert all(math.isnan(end) for end in bootstrap_interval([NAN]))
    assert bootstrap_interval([1.0, NAN, 2.0]) == bootstrap_interval([1.0, 2.0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": 1.0}, "level"),
        ({"level": 95}, "level"),
        ({"draws": 0}, "draws"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_an_interval_cannot_be_made_of(options: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=f"{says} is .*got {next(iter(options.values()))}"):
        bootstrap_interval([1.0, 2.0], **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"row of numbers.*\(1, 2\)"):
        bootstrap_interval([[1.0, 2.0]])


def test_a_paired_difference_sees_what_two_means_do_not() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(30, 5, 50)
    first, second = hard + 0.5 + generator.normal(0, 0.3, 50), hard
    found = paired_difference(first, second)
    assert found.mean == pytest.approx((first - second).mean())
    assert found.low < found.mean < found.high
    assert found.high - found.low < 0.3
    assert found.clear
    assert found.count == 50
    apart = bootstrap_interval(first)
    assert apart[0] < second.mean() < apart[1]
    back = paired_difference(second, first)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    assert not paired_difference(generator.normal(0, 1, 20), np.zeros(20)).clear


def test_a_paired_difference_leaves_out_what_one_of_them_lacks() -> None:
    found = paired_difference([1.0, NAN, 4.0], [0.0, 1.0, NAN])
    assert (found.mean, found.low, found.high, found.count) == (1, 1, 1, 1)
    nothing = paired_difference([NAN], [1.0])
    assert math.isnan(nothing.mean)
    assert nothing.count == 0
    assert not nothing.clear
    with pytest.raises(UsageError, match="got 1 and 2"):
        paired_difference([1.0], [1.0, 2.0])


def test_wins_by_hand() -> None:
    table = {"a": [1.0, 5.0, 2.0, NAN], "b": [2.0, 5.0, NAN, NAN], "c": [3.0, 1.0, 1.0, NAN]}
    assert wins(table, "higher") == {"a": 1.5, "b": 0.5, "c": 1}
    assert wins(table, "lower") == {"a": 1, "b": 0, "c": 2}
    assert wins({}, "lower") == {}
    assert wins({"a": [], "b": []}, "lower") == {"a": 0, "b": 0}


def test_wins_of_what_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match=r"'a': 1, 'b': 2"):
        wins({"a": [1.0], "b": [1.0, 2.0]}, "higher")
    with pytest.raises(UsageError, match="'higher' or 'lower', got 'best'"):
        wins({"a": [1.0]}, "best")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(2, 20),
    methods=st.integers(3, 9),
    levels=st.integers(2, 30),
    seed=st.integers(0, 999),
)
def test_friedman_equals_scipys(items: int, methods: int, levels: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, (items, methods)).astype(float)
    if (scores == scores[:, :1]).all():
        assert friedman(scores) == (0, 1)
        return
    theirs = stats.friedmanchisquare(*scores.T)
    statistic, p = friedman(scores)
    assert statistic == pytest.approx(theirs.statistic, abs=1e-9)
    assert p == pytest.approx(theirs.pvalue, abs=1e-9)


def test_friedman_by_hand() -> None:
    """Four sets, three methods, always in one order: Q = 12/(4·3·4)·(4² + 8² + 12²) − 3·4·4 = 8."""
    statistic, p = friedman([[1, 2, 3], [1, 2, 8], [2, 3, 8], [1, 3, 8]])
    assert statistic == pytest.approx(8)
    assert p == pytest.approx(math.exp(-4))  # chi-square with two degrees of freedom


def test_friedman_of_two_methods_of_gaps_and_of_nothing() -> None:
    assert friedman([[1, 2], [1, 2], [1, 2], [1, 2]])[0] == pytest.approx(4)  # the sign test's
    assert friedman([[1, 2, 3], [NAN, 1, 2], [3, 1, 2]]) == friedman([[1, 2, 3], [3, 1, 2]])
    with pytest.raises(UsageError, match="no item"):
        friedman([[NAN, 1.0, 2.0]])
    with pytest.raises(UsageError, match=r"at least two methods, got shape \(3, 1\)"):
        friedman([[1.0], [2.0], [3.0]])
