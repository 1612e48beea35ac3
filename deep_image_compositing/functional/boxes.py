"""Boxes: the part of a picture that holds something, and a margin around it."""

from __future__ import annotations

import math
from typing import TypeAlias

from torch import Tensor

Box: TypeAlias = tuple[slice, slice]
"""Rows and columns, so that ``picture[..., rows, columns]`` is the part."""


def bounding_box(inside: Tensor) -> Box | None:
    """The smallest box that holds all of ``inside`` (H, W), boolean; None where nothing is."""
    spans = []
    for across in (1, 0):
        places = inside.any(across).nonzero()[:, 0]
        if not len(places):
            return None
        spans.append(slice(int(places[0]), int(places[-1]) + 1))
    return spans[0], spans[1]


def grow(box: Box, margin: int, size: tuple[int, int]) -> Box:
    """``box`` and ``margin`` pixels more on every side, as far as ``size`` (height, width) goes."""
    rows, columns = (
        slice(max(0, span.start - margin), min(length, span.stop + margin))
        for span, length in zip(box, size, strict=True)
    )
    return rows, columns


def edges(box: Box) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the box, in pixels; bottom and right are exclusive."""
    rows, columns = box
    return rows.start, rows.stop, columns.start, columns.stop


def subject_boxes(mask: Tensor, level: float, margin: float) -> list[Box]:
    """A box around what exceeds ``level`` in each mask, the whole picture where nothing does.

    It grows on every side by ``margin``, a share of the subject's longer side.
    """
    size = (mask.shape[-2], mask.shape[-1])
    boxes = []
    for inside in mask[:, 0] > level:
        box = bounding_box(inside) or (slice(0, size[0]), slice(0, size[1]))
        longer = max(span.stop - span.start for span in box)
        boxes.append(grow(box, math.ceil(margin * longer), size))
    return boxes
