"""Tiles: they cover what they are asked to, blend without seams, and stay within memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional import tiles
from deep_image_compositing.functional.boxes import Box, edges, grow
from deep_image_compositing.functional.tiles import (
    Grid,
    enlarged_windows,
    fill_cells,
    touched_cells,
    window_of,
    work_on_cells,
)

# Tiny, odd, prime, and on either side of a cell and of a window.
SIZES = [(1, 1), (1, 97), (31, 64), (96, 96), (97, 193), (128, 130), (211, 307)]
CONTEXTS = (0, 1, 16, 70)


def every(grid: Grid) -> Tensor:
    return torch.ones(grid.rows, grid.columns, dtype=torch.bool)


def scattered(grid: Grid, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(grid.rows, grid.columns, generator=random) < 0.4


def picture(grid: Grid, channels: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.rand(channels, grid.height, grid.width, generator=random)


# The grid


@pytest.mark.parametrize("size", SIZES)
def test_cells_cover_every_pixel_once_and_windows_hold_them(size: tuple[int, int]) -> None:
    wide = Grid.over(torch.empty(3, *size), 130)
    assert (wide.cell, Grid.over(torch.empty(size), 70).cell) == (130, 96)
    for grid in (*(Grid(*size, context=context) for context in CONTEXTS), wide):
        count = torch.zeros(size)
        for row, column in every(grid).nonzero().tolist():
            rows, columns = grid.span(row, column)
            count[rows, columns] += 1
            top, left = grid.corner(row, column)
            assert 0 <= top <= rows.start
            assert 0 <= left <= columns.start
            assert rows.stop <= top + grid.window[0]
            assert columns.stop <= left + grid.window[1]
            # A step, which divides cell and context, divides corners; they stick out by less.
            step = grid.step
            assert grid.cell % step == grid.context % step == 0
            assert top % step == left % step == 0
            assert top + grid.window[0] < grid.height + step
            assert left + grid.window[1] < grid.width + step
        assert torch.equal(count, torch.ones(size))


def test_the_outermost_context_counts_for_nothing() -> None:
    weight = Grid(400, 400, context=16).weights(1, 1)
    assert weight[:8].max() == weight[:, :8].max() == weight[-8:].max() == 0
    assert weight[64, 64] == 1


# Which cells


def brute_touched(grid: Grid, marked: Tensor, box: Box) -> Tensor:
    """A small pixel touches a cell when their areas in the picture have a part in common."""
    top, bottom, left, right = edges(box)
    high, wide = marked.shape
    out = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    for y, x in marked.nonzero().tolist():
        for row in range(grid.rows):
            for column in range(grid.columns):
                rows, columns = grid.span(row, column)
                # Times the small sides, so that all are whole numbers.
                down = ((rows.start - top) * high, (rows.stop - top) * high)
                along = ((columns.start - left) * wide, (columns.stop - left) * wide)
                out[row, column] |= (
                    down[0] < (y + 1) * (bottom - top)
                    and down[1] > y * (bottom - top)
                    and along[0] < (x + 1) * (right - left)
                    and along[1] > x * (right - left)
                )
    return out


@pytest.mark.parametrize("size", [(40, 61), (97, 53), (8, 8)])
@pytest.mark.parametrize("part", [None, (slice(3, 37), slice(5, 50)), (slice(0, 8), slice(1, 7))])
def test_cells_against_a_brute_force_reference(size: tuple[int, int], part: Box | None) -> None:
    grid = Grid(*size, cell=8, context=2)
    if part is not None:
        part = grow(part, 0, size)
    box = part or (slice(0, size[0]), slice(0, size[1]))
    for small, share in (((7, 11), 0.3), ((30, 17), 0.02), ((1, 1), 1.0), ((40, 61), 0.02)):
        marked = torch.rand(small, generator=torch.Generator().manual_seed(0)) < share
        assert torch.equal(touched_cells(grid, marked, part), brute_touched(grid, marked, box))


def test_filling_writes_marked_cells_and_no_others() -> None:
    grid = Grid(50, 83, cell=16)
    for cells in (scattered(grid), every(grid), ~every(grid)):
        written = torch.zeros(50, 83)
        fill_cells(grid, cells, lambda rows, columns, w=written: w[rows, columns].add_(1))
        expected = cells.repeat_interleave(16, 0).repeat_interleave(16, 1)[:50, :83]
        assert torch.equal(written, expected.float())


# Windows


def test_a_window_beyond_the_picture_repeats_its_border() -> None:
    whole = torch.arange(12).view(1, 3, 4)
    window = window_of(whole, (1, 2), (4, 3))
    assert window[0].tolist() == [[6, 7, 7], [10, 11, 11], [10, 11, 11], [10, 11, 11]]


@pytest.mark.parametrize(
    ("size", "box", "small"),
    [
        ((300, 211), (slice(0, 300), slice(0, 211)), (37, 41)),
        ((97, 400), (slice(0, 97), slice(0, 400)), (1, 1)),
        ((20, 30), (slice(0, 20), slice(0, 30)), (97, 19)),
        ((250, 260), (slice(40, 200), slice(30, 250)), (23, 31)),
    ],
)
def test_enlarged_windows_are_parts_of_the_enlarged_whole_whose_border_continues(
    size: tuple[int, int], box: Box, small: tuple[int, int]
) -> None:
    grid, (top, bottom, left, right) = Grid(*size), edges(box)
    coarse = torch.rand(1, 2, *small, generator=torch.Generator().manual_seed(3))
    part = F.interpolate(coarse, (bottom - top, right - left), mode="bilinear")
    whole = F.pad(part, (left, size[1] - right, top, size[0] - bottom), mode="replicate")[0]
    corners = [grid.corner(*place) for place in every(grid).nonzero().tolist()]
    expected = torch.stack([window_of(whole, corner, grid.window) for corner in corners])
    windows = enlarged_windows(coarse, grid, corners, box)
    torch.testing.assert_close(windows, expected, atol=2e-5, rtol=0)


# Work


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", [every, scattered])
def test_the_picture_s_own_windows_give_the_picture_back(size: tuple[int, int], which: Any) -> None:
    for grid in (Grid(*size, context=context) for context in CONTEXTS):
        whole, cells = picture(grid), which(grid)

        def make(
            corners: list[tuple[int, int]], grid: Grid = grid, whole: Tensor = whole
        ) -> Tensor:
            return torch.stack([window_of(whole, corner, grid.window) for corner in corners])

        seen = torch.zeros(size, dtype=torch.bool)
        for top, bottom, answer, covered in work_on_cells(grid, cells, make, 2):
            torch.testing.assert_close(answer[:, covered], whole[:, top:bottom][:, covered])
            assert not answer[:, ~covered].any()
            assert not (seen[top:bottom] & covered).any()
            seen[top:bottom] |= covered
        for row, column in cells.nonzero().tolist():
            assert seen[grid.span(row, column)].all()


def test_strips_come_in_order_and_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(700, 900, context=16)
    monkeypatch.setattr(tiles, "PIXELS_AT_ONCE", 3 * 128 * 128 + 5)
    sizes, asked = [], []

    def make(corners: list[tuple[int, int]]) -> Tensor:
        sizes.append(len(corners))
        asked.extend(corners)
        return torch.zeros(len(corners), 1, *grid.window)

    for cells in (every(grid), scattered(grid), scattered(grid, 5)):
        asked.clear()
        end = 0
        for top, bottom, answer, covered in work_on_cells(grid, cells, make, 1):
            assert end <= top < bottom <= grid.height
            assert bottom - top <= grid.window[0]
            assert answer.shape == (1, bottom - top, grid.width)
            assert covered.shape == (bottom - top, grid.width)
            end = bottom
        assert asked == [grid.corner(*place) for place in cells.nonzero().tolist()]
    assert max(sizes) == 3
    assert not list(work_on_cells(grid, ~every(grid), pytest.fail, 1))


def test_constant_answers_that_differ_go_over_into_each_other() -> None:
    """Between two cells the answer is a ramp without a step, which is what hides seams."""
    grid = Grid(96, 192, context=16)

    def make(corners: list[tuple[int, int]]) -> Tensor:
        return torch.stack([torch.full((1, *grid.window), float(x > 0)) for _, x in corners])

    ((_, _, answer, covered),) = work_on_cells(grid, every(grid), make, 1)
    assert covered.all()
    steps = answer[0, 0].diff()
    assert steps.min() >= 0
    assert steps.max() < 0.1
    assert answer[0, 0, 80] == 0
    assert answer[0, 0, -80] == 1
