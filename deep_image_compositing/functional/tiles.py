"""Work on the square cells of a picture that need it, blended without seams.

Work on a cell is done on its *window*, the cell and some context. Overlapping answers are mixed
with weights that change linearly across cells' borders; the outermost context counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.boxes import Box, edges

CELL = 96  # side of a cell in pixels, at least
PIXELS_AT_ONCE = 16 * 128 * 128  # pixels of the windows that are worked on in one batch


@dataclass(frozen=True)
class Grid:
    """Cells and windows of a picture of ``height`` x ``width`` pixels.

    ``context`` are the pixels around a cell that belong to its window; at least 1 where they blend.
    """

    height: int
    width: int
    cell: int = CELL
    context: int = 16

    @classmethod
    def over(cls, picture: Tensor, context: int) -> Grid:
        """Of ``picture`` (..., H, W). Cells are no narrower than the context, for economy."""
        return cls(picture.shape[-2], picture.shape[-1], max(CELL, context), context)

    @property
    def rows(self) -> int:
        return -(-self.height // self.cell)

    @property
    def columns(self) -> int:
        return -(-self.width // self.cell)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of every window: all are of one size, so that they make batches."""
        side = self.cell + 2 * self.context
        return min(side, self.height), min(side, self.width)

    @property
    def step(self) -> int:
        """What divides both cell and context, for networks' strides; no more than ``CELL``."""
        return math.gcd(CELL, self.cell, self.context)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top and left of a cell's window, moved where it would stick out of the picture.

        They are multiples of ``step``, so it may still stick out a little at the bottom and on the
        right; ``window_of`` fills it.
        """
        step = self.step
        return tuple(  # type: ignore[return-value]
            min(max(0, number * self.cell - self.context), -(-(whole - side) // step) * step)
            for number, whole, side in zip(
                (row, column), (self.height, self.width), self.window, strict=True
            )
        )

    def span(self, row: int, column: int) -> tuple[slice, slice]:
        """Rows and columns of a cell."""
        top, left = row * self.cell, column * self.cell
        return (
            slice(top, min(top + self.cell, self.height)),
            slice(left, min(left + self.cell, self.width)),
        )

    def weights(self, row: int, column: int) -> Tensor:
        """How much each pixel of a cell's window counts, (window height, window width)."""
        top, left = self.corner(row, column)
        rows = self._ramp(row * self.cell, top, self.window[0], self.height)
        columns = self._ramp(column * self.cell, left, self.window[1], self.width)
        return rows[:, None] * columns

    def _ramp(self, start: int, first: int, length: int, whole: int) -> Tensor:
        """From 0 to 1 across the middle half of the overlap; 1 up to the border of the picture."""
        place = torch.arange(first, first + length) + 0.5
        half = max(self.context / 2, 0.5)
        rise = ((place - start) / half + 1) / 2
        fall = ((min(start + self.cell, whole) - place) / half + 1) / 2
        ones = torch.ones(length)
        rise = ones if start == 0 else rise
        fall = ones if start + self.cell >= whole else fall
        return torch.minimum(rise, fall).clamp(0, 1)


def touched_cells(grid: Grid, marked: Tensor, box: Box | None = None) -> Tensor:
    """Which cells, (rows, columns) boolean, hold something of ``marked``, (h, w) boolean.

    It shows the part ``box`` of the picture at any size; None for all of it.
    """
    top, bottom, left, right = edges(box or (slice(0, grid.height), slice(0, grid.width)))
    sums = F.pad(marked.to(torch.int32).cumsum(0).cumsum(1), (1, 0, 1, 0))
    ends = []
    for start, length, small, count in (
        (top, bottom - top, marked.shape[0], grid.rows),
        (left, right - left, marked.shape[1], grid.columns),
    ):
        first = torch.arange(count) * grid.cell - start
        low = first.clamp(0, length) * small
        high = (first + grid.cell).clamp(0, length) * small + length - 1
        ends.append([torch.div(x, length, rounding_mode="floor") for x in (low, high)])
    (up, down), (west, east) = ends
    held = sums[down][:, east] - sums[up][:, east] - sums[down][:, west] + sums[up][:, west]
    return held > 0


def cells_inside(grid: Grid, inside: Tensor, box: Box | None = None) -> Tensor:
    """Which cells, (rows, columns) boolean, have their middle where ``inside``, (h, w) boolean, is.

    It shows the part ``box`` of the picture at any size; beyond it, nothing is inside.
    """
    top, bottom, left, right = edges(box or (slice(0, grid.height), slice(0, grid.width)))
    within, places = [], []
    for start, length, small, count, whole in (
        (top, bottom - top, inside.shape[0], grid.rows, grid.height),
        (left, right - left, inside.shape[1], grid.columns, grid.width),
    ):
        first = torch.arange(count) * grid.cell
        middle = torch.div(first + (first + grid.cell).clamp(max=whole), 2, rounding_mode="floor")
        middle = middle - start
        within.append((middle >= 0) & (middle < length))
        places.append(torch.div(middle.clamp(0, length - 1) * small, length, rounding_mode="floor"))
    return inside[places[0]][:, places[1]] & within[0][:, None] & within[1]


def fill_cells(grid: Grid, cells: Tensor, write: Callable[[slice, slice], Any]) -> None:
    """Call ``write`` with the rows and columns of every run of marked cells in a row."""
    for row, marks in enumerate(cells.tolist()):
        for marked, run in groupby(range(len(marks)), marks.__getitem__):
            columns = [*run]
            if marked:
                rows, first = grid.span(row, columns[0])
                write(rows, slice(first.start, grid.span(row, columns[-1])[1].stop))


def window_of(picture: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The part (C, h, w) at ``corner`` of ``picture`` (C, H, W), whose border continues."""
    part = picture[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    if part.shape[1:] == size:
        return part
    rows, columns = (
        torch.arange(side, device=picture.device).clamp(max=have - 1)
        for side, have in zip(size, part.shape[1:], strict=True)
    )
    return part[:, rows][:, :, columns]


def enlarged_windows(small: Tensor, grid: Grid, corners: list[tuple[int, int]], box: Box) -> Tensor:
    """Windows (B, C, h, w) of ``small`` (1, C, ., .), which shows ``box``, enlarged bilinearly.

    ``corners`` are the top left of each in the picture; beyond ``box`` the border continues.
    """
    height, width = grid.window
    top, bottom, left, right = edges(box)
    rows = torch.arange(height, device=small.device) + 0.5
    columns = torch.arange(width, device=small.device) + 0.5
    start = torch.tensor(corners, device=small.device, dtype=torch.float32)
    y = (start[:, :1] + rows - top) * (2 / (bottom - top)) - 1
    x = (start[:, 1:] + columns - left) * (2 / (right - left)) - 1
    places = torch.stack(
        [x[:, None].expand(-1, height, -1), y[..., None].expand(-1, -1, width)], -1
    )
    # One tall picture of all windows: a batch would need a copy of ``small`` for each.
    tall = places.reshape(1, len(corners) * height, width, 2).to(small.dtype)
    out = F.grid_sample(small, tall, padding_mode="border", align_corners=False)
    return out[0].reshape(-1, len(corners), height, width).transpose(0, 1)


def work_on_cells(
    grid: Grid,
    touched: Tensor,
    make: Callable[[list[tuple[int, int]]], Tensor],
    channels: int,
    device: torch.device | None = None,
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Work on the windows of the ``touched`` cells, in batches, and blend the answers.

    Only a strip as high as a window is held in floating point. Given the corners of some windows,
    ``make`` returns (B, ``channels``, window height, window width) on ``device`` (default: CPU).
    Yields strips from the top down, of rows in which anything was done: first row, row after the
    last, the blended answers (``channels``, rows, W), and where there are any, boolean (rows, W).
    """
    height, width = grid.window
    total = torch.zeros(channels + 1, height, grid.width, device=device)
    batch = max(1, PIXELS_AT_ONCE // (height * width))
    base = 0
    pending = False
    for row in range(grid.rows):
        columns = touched[row].nonzero()[:, 0].tolist()
        top = grid.corner(row, 0)[0]
        if pending and top > base:
            done = min(top - base, height)
            yield base, base + done, *_mean(total[:, :done])
            rest = total[:, done:].clone()
            total.zero_()
            total[:, : rest.shape[1]] = rest
            pending = bool((rest[-1] > 0).any())
        base = top
        for start in range(0, len(columns), batch):
            some = columns[start : start + batch]
            corners = [grid.corner(row, column) for column in some]
            for column, (_, left), answer in zip(some, corners, make(corners), strict=True):
                weight = grid.weights(row, column).to(total.device)
                place = slice(left, min(left + width, grid.width))
                inside = place.stop - place.start
                total[:-1, :, place] += (answer * weight)[..., :inside]
                total[-1, :, place] += weight[:, :inside]
            pending = True
    if pending:
        end = min(base + height, grid.height)
        yield base, end, *_mean(total[:, : end - base])


def _mean(total: Tensor) -> tuple[Tensor, Tensor]:
    weight = total[-1]
    return total[:-1] / weight.clamp_min(torch.finfo(weight.dtype).tiny), weight > 0
