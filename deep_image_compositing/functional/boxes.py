"""Bounding boxes and margins."""

from __future__ import annotations

import math
from typing import TypeAlias

from torch import Tensor

Box: TypeAlias = tuple[slice, slice]
"""Rows and columns, for indexing as ``image[..., rows, columns]``."""


def bounding_box(inside: Tensor) -> Box | None:
    """The smallest box around the true pixels of ``inside`` (H, W), or None if there are none."""
    rows, columns = (inside.any(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def grow(box: Box, margin: int, size: tuple[int, int]) -> Box:
    """Expand ``box`` by ``margin`` pixels on every side, within ``size`` (height, width)."""
    rows, columns = (
        slice(max(0, span.start - margin), min(length, span.stop + margin))
        for span, length in zip(box, size, strict=True)
    )
    return rows, columns


def edges(box: Box) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the box in pixels; bottom and right are exclusive."""
    rows, columns = box
    return rows.start, rows.stop, columns.start, columns.stop


def subject_boxes(mask: Tensor, level: float, margin: float) -> list[Box]:
    """A box around the pixels of each mask above ``level``; the full image if there are none.

    Boxes grow on every side by ``margin``, a fraction of their longer side.
    """
    size = (mask.shape[-2], mask.shape[-1])
    boxes = []
    for inside in mask[:, 0] > level:
        box = bounding_box(inside) or (slice(0, size[0]), slice(0, size[1]))
        longer = max(span.stop - span.start for span in box)
        boxes.append(grow(box, math.ceil(margin * longer), size))
    return boxes
