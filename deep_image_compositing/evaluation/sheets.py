"""Contact sheets of a comparison: all methods on one sample, with zoomed crops of its rim.

The bench calls ``draw``. Results are read from disk one method at a time, so that memory does
not grow with the number of methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deep_image_compositing.evaluation.measures import MEASURES
from deep_image_compositing.evaluation.testsets import Sample
from deep_image_compositing.evaluation.testsets.base import planes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.images import read_image
from deep_image_compositing.placement import cover, resample

FOLDER = "sheets"
"""Folder of the sheets, inside the report's."""

LAYOUT = 1
"""Raised whenever a sheet shows something else of the same results."""

CELL = 288
"""Side in pixels of the square in which a picture is shown."""

CROPS = 3
"""Zoomed crops a sample."""

GAIN = 4
"""What errors are multiplied by before they are shown."""

_ZOOMS = (1, 2, 3, 4, 6, 9)  # the divisors of CELL that make sense
_SEARCH = 1024  # long side at which the crops are searched for
_GAP, _MARGIN, _CAPTION = 4, 8, 22
_COLORS = ((230, 60, 60), (40, 140, 60), (50, 90, 230))
_LABEL = ("band_psnr", "psnr", "halo", "seconds")

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Row:
    """What one method made of the sample.

    Attributes:
        name: of the method.
        base: path of its result pictures, without their suffixes.
        record: what the bench wrote of it.
    """

    name: str
    base: Path
    record: Mapping[str, Any]

    def read(self, kind: str) -> Tensor | None:
        """Its ``composite``, ``alpha`` or ``mask`` (C, H, W), uint8; None when there is none."""
        path = self.base.with_name(f"{self.base.name}.{kind}.png")
        if "error" in self.record or not path.is_file():
            return None
        picture = planes(read_image(path).pixels)
        return picture if kind == "composite" else picture[:1]

    def caption(self) -> str:
        """Its name and its main figures, or why there are none."""
        if "error" in self.record:
            return f"{self.name}   failed: {self.record['error']}"
        values = self.record.get("measures", {})
        figures = (
            f"{MEASURES[key].name} {values[key]:.{MEASURES[key].digits}f} {MEASURES[key].unit}"
            for key in _LABEL
            if key in values
        )
        return "   ".join([self.name, *(text.rstrip() for text in figures)])


def draw(sample: Sample, grade: str, rows: Sequence[Row]) -> Pixels:
    """The contact sheet of one sample in one grade.

    Rows are the photograph, the mask, the truth where it is known, and each method. Columns are
    the whole picture, ``CROPS`` crops of the rim, magnified without smoothing, and the error
    against the truth, ``GAIN`` times as bright (mean of the channels); without a truth, the
    method's alpha.

    Args:
        sample: what the methods were given.
        grade: of the mask that they were given.
        rows: the methods, in the order of the table.

    Returns:
        (H, W, 3) uint8.
    """
    size = (sample.foreground.shape[-2], sample.foreground.shape[-1])
    truth, zoom = sample.composite, choose_zoom(*size)
    boxes = choose_crops(interest(sample, rows), size, CELL // zoom)
    title = f"{sample.name}   mask: {grade}   {size[1]} x {size[0]} pixels"
    last = "alpha" if truth is None else f"error x {GAIN}"
    columns = ["whole", *(f"crop {i + 1}, x {zoom}" for i in range(len(boxes))), last]
    canvas = _Canvas(title, columns, len(rows) + (2 if truth is None else 3))
    numbers = count()

    def row(caption: str, picture: Tensor | None, marked: bool = True) -> None:
        canvas.row(caption, next(numbers))
        if picture is not None:
            corner = canvas.put(0, _reduced(picture))
            if marked:
                canvas.mark(corner, boxes, size)
            for column, (box, color) in enumerate(zip(boxes, _COLORS, strict=False), start=1):
                canvas.put(column, _magnified(picture, box, zoom), frame=color)

    row("photograph", sample.foreground)
    canvas.put(-1, _reduced(cover(sample.background, size)), note="new background")
    mask, finder = sample.masks.get(grade), ""
    if mask is None:
        masks = ((f", found by {r.name}", r.read("mask")) for r in rows)
        finder, mask = next((pair for pair in masks if pair[1] is not None), ("", None))
    row(f"mask{finder}", mask)
    if sample.alpha is not None:
        canvas.put(-1, _reduced(sample.alpha), note="true alpha")
    if truth is not None:
        row("truth", truth)
    for method in rows:
        result, shown = method.read("composite"), method.read("alpha")
        row(method.caption(), result, marked=False)
        if result is not None and truth is not None:
            error = (result.int() - truth.int()).abs_().float().mean(0, keepdim=True)
            shown = (error * GAIN).round().clamp_(0, 255).byte()
        if result is not None and shown is not None:
            canvas.put(-1, _reduced(shown))
    return np.asarray(canvas.image)


# Where to look


def choose_zoom(height: int, width: int) -> int:
    """Magnification at which a crop shows about an eighth of the picture's short side."""
    return min(_ZOOMS, key=lambda zoom: abs(CELL / zoom - min(height, width) / 8))


def interest(sample: Sample, rows: Sequence[Row]) -> Tensor:
    """How much there is to see at each place, (1, 1, h, w), at a long side of at most 1024.

    With a true alpha, its softness ``4 · alpha · (1 - alpha)``, so that crops do not depend on
    the methods. Without one, the largest softness that any method gave, times how far composites
    differ there; of one method alone, its softness.
    """
    if sample.alpha is not None:
        return _softness(sample.alpha)
    softness = low = high = None
    for row in rows:
        alpha, composite = row.read("alpha"), row.read("composite")
        if alpha is None or composite is None:
            continue
        soft, small = _softness(alpha), _small(composite)
        softness = soft if softness is None else torch.maximum(softness, soft)
        low = small if low is None else torch.minimum(low, small)
        high = small if high is None else torch.maximum(high, small)
    if softness is None or low is None or high is None:
        _, height, width = sample.foreground.shape
        return torch.zeros(1, 1, *fit_long_side(height, width, _SEARCH))
    differing = softness * (high - low).amax(1, keepdim=True)
    return differing if bool(differing.any()) else softness


def choose_crops(
    interest: Tensor, size: tuple[int, int], side: int, count: int = CROPS
) -> list[Box]:
    """The squares that hold most of what there is to see, apart from one another.

    Args:
        interest: (1, 1, h, w), not negative, of the picture at some scale.
        size: (height, width) of the picture itself.
        side: of the squares in pixels of the picture; squares are cut down to small pictures.
        count: how many, at most.

    Returns:
        (top, left, bottom, right) each, most interesting first; one in the middle where there is
        nothing to see.
    """
    height, width = size
    rows, columns = interest.shape[-2:]
    high, wide = min(side, height), min(side, width)
    window = (max(1, round(high * rows / height)), max(1, round(wide * columns / width)))
    sums = F.avg_pool2d(interest.double(), window, stride=1)[0, 0]
    boxes: list[Box] = []
    while len(boxes) < count and float(sums.max()) > 0:
        y, x = divmod(int(sums.argmax()), sums.shape[1])
        top = min(round(y * height / rows), height - high)
        left = min(round(x * width / columns), width - wide)
        boxes.append((top, left, top + high, left + wide))
        # What overlaps by more than a corner is not shown twice.
        sums[
            max(0, y - window[0] + 1) : y + window[0], max(0, x - window[1] + 1) : x + window[1]
        ] = 0
    if not boxes:
        top, left = (height - high) // 2, (width - wide) // 2
        boxes.append((top, left, top + high, left + wide))
    return boxes


def _softness(alpha: Tensor) -> Tensor:
    value = _small(alpha)
    return 4 * value * (1 - value)


def _small(picture: Tensor) -> Tensor:
    """(1, C, h, w) in [0, 1]."""
    height, width = picture.shape[-2:]
    if max(height, width) > _SEARCH:
        picture = resample(picture, fit_long_side(height, width, _SEARCH))
    return picture[None].float() / 255


# Drawing


def _rgb(picture: Tensor) -> Image.Image:
    """A picture (C, H, W), uint8, for Pillow."""
    return Image.fromarray(picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _reduced(picture: Tensor) -> Image.Image:
    """A picture (C, H, W), uint8, that fits into a cell."""
    height, width = fit_long_side(picture.shape[-2], picture.shape[-1], CELL, enlarge=True)
    how = Image.Resampling.BOX
    if picture.shape[-2] < height:
        how = Image.Resampling.NEAREST
    elif picture.shape[-2] * picture.shape[-1] <= _SEARCH**2:
        how = Image.Resampling.LANCZOS
    return _rgb(picture).resize((width, height), how)


def _magnified(picture: Tensor, box: Box, zoom: int) -> Image.Image:
    top, left, bottom, right = box
    crop = picture[:, top:bottom, left:right].repeat_interleave(zoom, 1)
    return _rgb(crop.repeat_interleave(zoom, 2))


class _Canvas:
    """A white sheet of captioned rows of cells, filled from the top."""

    def __init__(self, title: str, columns: Sequence[str], rows: int) -> None:
        self._columns = len(columns)
        width = 2 * _MARGIN + self._columns * (CELL + _GAP) - _GAP
        height = 2 * _MARGIN + 2 * _CAPTION + rows * (CELL + _CAPTION + _GAP)
        self.image = Image.new("RGB", (width, height), (255, 255, 255))
        self._draw, self._font = ImageDraw.Draw(self.image), ImageFont.load_default(13)
        self._line(_MARGIN, ImageFont.load_default(16), title)
        self._top = _MARGIN + _CAPTION
        for column, label in enumerate(columns):
            self._draw.text((self._left(column), self._top), label, (90, 90, 90), self._font)

    def row(self, caption: str, number: int) -> None:
        """Begin a row."""
        self._top = _MARGIN + 3 * _CAPTION + number * (CELL + _GAP + _CAPTION)
        self._line(self._top - _CAPTION, self._font, caption)
        for column in range(self._columns):
            left = self._left(column)
            self._box(left, self._top, CELL, CELL, fill=(238, 238, 238))

    def put(
        self,
        column: int,
        picture: Image.Image,
        *,
        note: str = "",
        frame: tuple[int, int, int] | None = None,
    ) -> tuple[int, int]:
        """Set a picture into the middle of a cell, -1 is the last, and say where."""
        left = self._left(column % self._columns) + (CELL - picture.width) // 2
        top = self._top + (CELL - picture.height) // 2
        self.image.paste(picture, (left, top))
        if frame is not None:
            self._box(left, top, *picture.size, outline=frame)
        if note:
            ends = self._draw.textbbox((left + 4, top + 3), note, self._font)
            around = (ends[0] - 3, ends[1] - 2, ends[2] + 3, ends[3] + 2)
            self._draw.rectangle(around, (255, 255, 255))
            self._draw.text((left + 4, top + 3), note, (0, 0, 0), self._font)
        return left, top

    def mark(self, corner: tuple[int, int], boxes: Sequence[Box], size: tuple[int, int]) -> None:
        """Outline the crops in the whole picture, which is ``size`` before it is reduced."""
        height, width = fit_long_side(*size, CELL, enlarge=True)
        y, x = height / size[0], width / size[1]
        for (top, left, bottom, right), color in zip(boxes, _COLORS, strict=False):
            ends = (round(left * x), round(top * y), round(right * x) - 1, round(bottom * y) - 1)
            placed = [end + corner[i % 2] for i, end in enumerate(ends)]
            self._draw.rectangle(placed, outline=color, width=2)

    def _box(self, left: int, top: int, width: int, height: int, **how: Any) -> None:
        self._draw.rectangle((left, top, left + width - 1, top + height - 1), **how)

    def _left(self, column: int) -> int:
        return _MARGIN + column * (CELL + _GAP)

    def _line(self, top: int, font: Any, text: str) -> None:
        """One line at the left; what is too long ends in dots."""
        room = self.image.width - 2 * _MARGIN
        text = " ".join(text.split("\n"))
        if font.getlength(text) > room:
            while text and font.getlength(text + "...") > room:
                text = text[:-1]
            text += "..."
        self._draw.text((_MARGIN, top + 2), text, (0, 0, 0), font)
