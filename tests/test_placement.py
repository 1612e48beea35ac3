"""Covering a frame and placing a subject in one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_image_compositing.errors import UsageError
from deep_image_compositing.placement import cover, paste, place, resample, subject_box


def bytes_of(height: int, width: int) -> torch.Tensor:
    return torch.arange(3 * height * width).view(3, height, width).remainder(251).byte()


def test_cover_crops_evenly_without_scaling_when_one_side_agrees() -> None:
    background = bytes_of(6, 10)
    assert torch.equal(cover(background, (6, 10)), background)
    assert torch.equal(cover(background, (6, 4)), background[:, :, 3:7])
    assert torch.equal(cover(background, (2, 10)), background[:, 2:4])
    # Of a very long picture without a long intermediate.
    assert cover(bytes_of(1, 5000), (5000, 1)).shape == (3, 5000, 1)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.booleans())
def test_cover_fills_any_frame(sizes: tuple[int, int, int, int], floats: bool) -> None:
    background = torch.full((3, *sizes[:2]), 200, dtype=torch.uint8)
    given_ = background / 255 if floats else background
    out = cover(given_, sizes[2:])
    assert out.shape == (3, *sizes[2:])
    assert out.dtype == given_.dtype
    assert torch.allclose(out.float(), torch.full_like(out.float(), float(given_.max())), atol=1e-5)


def test_shrinking_is_antialiased() -> None:
    stripes = torch.zeros(1, 64, 64)
    stripes[:, :, ::2] = 1
    inner = resample(stripes, (8, 8))[:, 2:-2, 2:-2]
    assert torch.allclose(inner, torch.full_like(inner, 0.5), atol=0.05)


def rectangle(
    height: int, width: int, top: int, bottom: int, left: int, right: int
) -> torch.Tensor:
    alpha = torch.zeros(1, height, width)
    alpha[:, top:bottom, left:right] = 1
    return alpha


def test_subject_box_is_the_bounding_box_also_of_a_faint_and_an_empty_alpha() -> None:
    alpha = rectangle(20, 30, 3, 9, 11, 30)
    assert subject_box(alpha) == subject_box(0.2 * alpha) == (slice(3, 9), slice(11, 30))
    assert subject_box(torch.zeros(1, 4, 6)) == (slice(0, 4), slice(0, 6))


@pytest.mark.parametrize(
    ("position", "edges"),
    [
        ((0.0, 0.0), (0, 40, 0, 80)),
        ((0.5, 0.5), (30, 70, 60, 140)),
        ((1.0, 1.0), (60, 100, 120, 200)),
        ((0.0, 1.0), (60, 100, 0, 80)),
    ],
)
def test_position_is_that_of_the_subject(
    position: tuple[float, float], edges: tuple[int, int, int, int]
) -> None:
    alpha = rectangle(50, 100, 10, 30, 40, 80)  # at scale 1 twice as large in a frame of 100 x 200
    frame = (100, 200)
    where = place(alpha, frame, 1.0, position)
    assert where.size == (100, 200)
    top, bottom, left, right = edges
    found = subject_box(paste(alpha, where, frame, edge=False))
    assert found == (slice(top, bottom), slice(left, right))


def test_scale_one_just_fits_and_smaller_is_smaller() -> None:
    alpha = rectangle(40, 20, 0, 40, 0, 20)
    assert place(alpha, (100, 300), 1.0, (0.5, 0.5)).size == (100, 50)
    assert place(alpha, (100, 300), 0.6, (0.5, 0.5)).size == (60, 30)
    assert place(alpha, (1000, 30), 1.0, (0.5, 0.5)).size == (60, 30)
    for scale in (0.0, -1.0, float("nan"), float("inf"), 1e6):
        with pytest.raises(UsageError, match="scale"):
            place(alpha, (100, 100), scale, (0.5, 0.5))


def test_paste_continues_the_border_of_a_photograph_and_leaves_an_alpha_empty() -> None:
    picture = bytes_of(4, 4)
    where = place(torch.ones(1, 4, 4), (4, 12), 1.0, (0.5, 0.5))
    out = paste(picture, where, (4, 12), edge=True)
    assert torch.equal(out[:, :, 4:8], picture)
    assert torch.equal(out[:, :, :4], picture[:, :, :1].expand(-1, -1, 4))
    assert torch.equal(out[:, :, 8:], picture[:, :, -1:].expand(-1, -1, 4))
    alpha = paste(torch.ones(1, 4, 4), where, (4, 12), edge=False)
    assert alpha.sum() == 16
    assert alpha[:, :, 4:8].all()


def test_a_subject_larger_than_the_frame_is_cut_off() -> None:
    alpha = rectangle(10, 10, 0, 10, 0, 10)
    where = place(alpha, (10, 10), 3.0, (0.5, 1.0))
    assert (where.size, where.top, where.left) == ((30, 30), -20, -10)
    assert paste(alpha, where, (10, 10), edge=False).all()
