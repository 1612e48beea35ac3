"""Tiled processing of selected cells of an image, blended without seams.

Each square cell is processed in its *window*, the cell with some context. Overlapping results are
blended with weights that vary linearly across cell borders; the outermost context has weight 0.
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

CELL = 96  # minimum side of a cell in pixels
PIXELS_AT_ONCE = 16 * 128 * 128  # pixels of all windows in a batch


@dataclass(frozen=True)
class Grid:
    """Cells and windows of an image of ``height`` x ``width`` pixels.

    ``context`` is the margin of a window around its cell in pixels, at least 1 for blending.
    """

    height: int
    width: int
    cell: int = CELL
    context: int = 16

    @classmethod
    def over(cls, picture: Tensor, context: int) -> Grid:
        """Grid for ``picture`` (..., H, W) with cells at least as wide as the context."""
        return cls(picture.shape[-2], picture.shape[-1], max(CELL, context), context)

    @property
    def rows(self) -> int:
        return -(-self.height // self.cell)

    @property
    def columns(self) -> int:
        return -(-self.width // self.cell)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of every window, equal for all so that they can be batched."""
        side = self.cell + 2 * self.context
        return min(side, self.height), min(side, self.width)

    @property
    def step(self) -> int:
        """Common divisor of cell and context, for networks' strides; at most ``CELL``."""
        return math.gcd(CELL, self.cell, self.context)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top and left of a cell's window, shifted to lie inside the image.

        As both are multiples of ``step``, windows may still exceed the image at the bottom and on
        the right, where ``window_of`` pads them.
        """
        step = self.step
        return tuple(  # type: ignore[return-value]
            min(max(0, index * self.cell - self.context), -(-(length - side) // step) * step)
            for index, length, side in zip(
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
        """Blending weights of a cell's window, (window height, window width)."""
        top, left = self.corner(row, column)
        rows = self._ramp(row * self.cell, top, self.window[0], self.height)
        columns = self._ramp(column * self.cell, left, self.window[1], self.width)
        return rows[:, None] * columns

    def _ramp(self, start: int, first: int, length: int, size: int) -> Tensor:
        """Weights along one axis: 0 to 1 across the middle half of overlaps, 1 at image borders."""
        position = torch.arange(first, first + length) + 0.5
        half = max(self.context / 2, 0.5)
        rise = ((position - start) / half + 1) / 2
        fall = ((min(start + self.cell, size) - position) / half + 1) / 2
        ones = torch.ones(length)
        rise = ones if start == 0 else rise
        fall = ones if start + self.cell >= size else fall
        return torch.minimum(rise, fall).clamp(0, 1)


def touched_cells(grid: Grid, marked: Tensor, box: Box | None = None) -> Tensor:
    """Which cells, (rows, columns) boolean, contain any of ``marked``, (h, w) boolean.

    ``marked`` covers the region ``box`` of the image, by default all of it, at any resolution.
    """
    box = box or (slice(0, grid.height), slice(0, grid.width))
    sums = F.pad(marked.to(torch.int32).cumsum(0).cumsum(1), (1, 0, 1, 0))
    ends = []
    for span, small, count in zip(box, marked.shape, (grid.rows, grid.columns), strict=True):
        length = span.stop - span.start
        first = torch.arange(count) * grid.cell - span.start
        low = first.clamp(0, length) * small
        high = (first + grid.cell).clamp(0, length) * small + length - 1
        ends.append((low // length, high // length))
    (up, down), (west, east) = ends
    counts = sums[down][:, east] - sums[up][:, east] - sums[down][:, west] + sums[up][:, west]
    return counts > 0


def fill_cells(grid: Grid, cells: Tensor, write: Callable[[slice, slice], Any]) -> None:
    """Call ``write`` with the pixel rows and columns of each horizontal run of marked cells."""
    for row, marks in enumerate(cells.tolist()):
        for marked, run in groupby(range(len(marks)), marks.__getitem__):
            columns = [*run]
            if marked:
                rows, first = grid.span(row, columns[0])
                write(rows, slice(first.start, grid.span(row, columns[-1])[1].stop))


def window_of(picture: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The window (C, h, w) at ``corner`` of ``picture`` (C, H, W), whose border is replicated."""
    window = picture[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    if window.shape[1:] == size:
        return window
    rows, columns = (
        torch.arange(side, device=picture.device).clamp(max=actual - 1)
        for side, actual in zip(size, window.shape[1:], strict=True)
    )
    return window[:, rows][:, :, columns]


def enlarged_windows(small: Tensor, grid: Grid, corners: list[tuple[int, int]], box: Box) -> Tensor:
    """Bilinearly upsampled windows (B, C, h, w) of ``small`` (1, C, ., .), which covers ``box``.

    ``corners`` are their top left in the image; beyond ``box`` the border is replicated.
    """
    height, width = grid.window
    top, bottom, left, right = edges(box)
    rows = torch.arange(height, device=small.device) + 0.5
    columns = torch.arange(width, device=small.device) + 0.5
    start = torch.tensor(corners, device=small.device, dtype=torch.float32)
    y = (start[:, :1] + rows - top) * (2 / (bottom - top)) - 1
    x = (start[:, 1:] + columns - left) * (2 / (right - left)) - 1
    positions = torch.stack(
        [x[:, None].expand(-1, height, -1), y[..., None].expand(-1, -1, width)], -1
    )
    # Sample all windows as one tall image, as a batch would need a copy of ``small`` for each.
    tall = positions.reshape(1, len(corners) * height, width, 2).to(small.dtype)
    out = F.grid_sample(small, tall, padding_mode="border", align_corners=False)
    return out[0].reshape(-1, len(corners), height, width).transpose(0, 1)


def work_on_cells(
    grid: Grid,
    touched: Tensor,
    make: Callable[[list[tuple[int, int]]], Tensor],
    channels: int,
    device: torch.device | None = None,
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Process the windows of the ``touched`` cells in batches and blend the results.

    Holds only a strip of one window's height in floating point. ``make`` takes the corners of some
    windows and returns (B, ``channels``, window height, window width) on ``device`` (default: CPU).
    Yields the processed rows in strips from the top down: first row, row after the last, blended
    results (``channels``, rows, W), and where these are valid, boolean (rows, W).
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
            chunk = columns[start : start + batch]
            corners = [grid.corner(row, column) for column in chunk]
            for column, (_, left), result in zip(chunk, corners, make(corners), strict=True):
                weight = grid.weights(row, column).to(total.device)
                span = slice(left, min(left + width, grid.width))
                inside = span.stop - span.start
                total[:-1, :, span] += (result * weight)[..., :inside]
                total[-1, :, span] += weight[:, :inside]
            pending = True
    if pending:
        end = min(base + height, grid.height)
        yield base, end, *_mean(total[:, : end - base])


def _mean(total: Tensor) -> tuple[Tensor, Tensor]:
    """Blended results and where they are valid, from weighted sums and the sum of weights."""
    weight = total[-1]
    return total[:-1] / weight.clamp_min(torch.finfo(weight.dtype).tiny), weight > 0
