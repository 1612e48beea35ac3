"""Where drawn subjects touch the ground."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.ground import find_stands


def walker() -> Tensor:
    """(120, 90): a body in a wide coat, two feet at different rows, and a raised hand."""
    alpha = torch.zeros(120, 90)
    alpha[5:80, 30:60] = 1  # body and coat
    alpha[80:118, 32:38] = 1  # the near leg
    alpha[80:114, 50:56] = 1  # the far one
    alpha[20:26, 60:85] = 1  # an arm
    return alpha


def touched(alpha: Tensor, cut: float | None = None) -> set[int]:
    """Columns that touch the ground."""
    return {
        column
        for stand in find_stands(alpha, cut)
        for column in stand.touches.nonzero()[:, 0].tolist()
    }


def test_both_feet_of_a_walker_touch_the_ground_but_neither_coat_nor_hand_does() -> None:
    assert touched(walker()) == {*range(32, 38), *range(50, 56)}
    (stand,) = find_stands(walker())
    assert float(stand.ground[34]) == pytest.approx(118, abs=0.1)
    assert float(stand.ground[52]) == pytest.approx(114, abs=0.1)
    assert 114 < float(stand.ground[44]) < 118  # between the feet it goes from one to the other
    assert stand.lowest[70] < stand.ground[70] - 80


def test_a_straight_line_goes_through_all_that_touches_and_never_above() -> None:
    (stand,) = find_stands(walker())
    row, middle, slope = stand.line()
    assert slope == pytest.approx(-4 / 18, abs=0.03)
    columns = stand.touches.nonzero()[:, 0] + 0.5
    assert bool((row + slope * (columns - middle) >= stand.lowest[stand.touches] - 0.01).all())


def test_a_lifted_foot_does_not_touch_it() -> None:
    alpha = walker()
    alpha[95:, 50:56] = 0
    assert touched(alpha) == set(range(32, 38))


def test_a_round_thing_touches_it_in_the_middle_only() -> None:
    rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij")
    ball = ((rows - 50) ** 2 + (columns - 50) ** 2 < 40**2).float()
    found = touched(ball)
    assert 50 in found
    assert min(found) > 28  # of 10 to 90
    assert max(found) < 72


def test_two_people_at_different_distances_stand_both() -> None:
    alpha = torch.zeros(120, 200)
    alpha[10:118, 20:50] = 1
    alpha[10:85, 150:175] = 1
    first, second = find_stands(alpha)
    assert float(first.ground[30]) == pytest.approx(118, abs=0.1)
    assert float(second.ground[160]) == pytest.approx(85, abs=0.1)
    assert torch.equal(first.alpha + second.alpha, alpha)


def test_what_is_in_the_air_stands_nowhere_and_specks_count_for_nothing() -> None:
    alpha = torch.zeros(120, 200)
    alpha[10:110, 20:50] = 1
    alpha[5:45, 150:190] = 1  # a balloon
    alpha[118, 100] = 1  # a speck
    assert touched(alpha) == set(range(20, 50))


def test_a_subject_that_is_cut_off_has_no_ground_and_one_foot_may_be_left() -> None:
    portrait = torch.zeros(100, 100)
    portrait[20:, 30:70] = 1
    assert find_stands(portrait, cut=100) == []
    assert touched(portrait) == set(range(30, 70))  # a crate that is whole
    alpha = walker()[:118]  # the near foot reaches the last row
    assert touched(alpha, cut=118) == set(range(50, 56))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (37, 53)])
def test_any_size_works(size: tuple[int, int]) -> None:
    (stand,) = find_stands(torch.ones(size))
    assert bool(stand.touches.all())
    assert float(stand.ground[0]) == size[0]
    assert find_stands(torch.zeros(size)) == []
