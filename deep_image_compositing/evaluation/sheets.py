"""Contact sheets of a comparison: all methods on one sample, with zoomed crops of its rim.

The bench calls ``draw``. Results are read from disk one method at a time, so that memory does
not grow with the number of methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deep_image_compositing.evaluation.measures import MEASURES
from deep_image_compositing.evaluation.testsets import Sample, pixels, planes
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
    height, width = sample.foreground.shape[-2:]
    truth, zoom = sample.composite, choose_zoom(height, width)
    boxes = choose_crops(interest(sample, rows), (height, width), CELL // zoom)
    canvas = _Canvas(len(rows) + (2 if truth is None else 3), 2 + len(boxes))
    canvas.head(
        f"{sample.name}   mask: {grade}   {width} x {height} pixels",
        ["whole", *(f"crop {i + 1}, x {zoom}" for i in range(len(boxes))),
         "alpha" if truth is None else f"error x {GAIN}"],
    )  # fmt: skip

    def row(caption: str, picture: Tensor | None, marks: Sequence[Box] = ()) -> None:
        canvas.row(caption)
        if picture is not None:
            canvas.put(0, _reduced(picture), marks=marks)
            for column, (box, color) in enumerate(zip(boxes, _COLORS, strict=False), start=1):
                canvas.put(column, _magnified(picture, box, zoom), frame=color)

    marks = _scaled(boxes, (height, width))
    row("photograph", sample.foreground, marks)
    behind = cover(sample.background, (height, width))
    canvas.put(-1, _reduced(behind), note="new background")
    mask, finder = sample.masks.get(grade), ""
    if mask is None:
        masks = ((r.name, r.read("mask")) for r in rows)
        finder, mask = next((pair for pair in masks if pair[1] is not None), ("", None))
    row(f"mask, found by {finder}" if finder else "mask", mask, marks)
    if sample.alpha is not None:
        canvas.put(-1, _reduced(sample.alpha), note="true alpha")
    if truth is not None:
        row("truth", truth, marks)
    for method in rows:
        result, last = method.read("composite"), method.read("alpha")
        row(method.caption(), result)
        if result is not None and truth is not None:
            error = (result.int() - truth.int()).abs_().float().mean(0, keepdim=True)
            last = (error * GAIN).round().clamp_(0, 255).byte()
        if result is not None and last is not None:
            canvas.put(-1, _reduced(last))
    return canvas.pixels()


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


def _reduced(picture: Tensor) -> Pixels:
    """A picture (C, H, W), uint8, that fits into a cell, as (h, w, 3)."""
    height, width = fit_long_side(picture.shape[-2], picture.shape[-1], CELL, enlarge=True)
    small = picture.shape[-2] < height
    image = Image.fromarray(pixels(picture.expand(3, -1, -1)))
    how = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    if not small and picture.shape[-2] * picture.shape[-1] <= _SEARCH**2:
        how = Image.Resampling.LANCZOS
    return np.asarray(image.resize((width, height), how))


def _magnified(picture: Tensor, box: Box, zoom: int) -> Pixels:
    top, left, bottom, right = box
    crop = pixels(picture[:, top:bottom, left:right].expand(3, -1, -1))
    return crop.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _scaled(boxes: Sequence[Box], size: tuple[int, int]) -> list[Box]:
    """The boxes within the whole picture as a cell shows it."""
    height, width = fit_long_side(*size, CELL, enlarge=True)
    y, x = height / size[0], width / size[1]
    return [
        (round(top * y), round(left * x), round(bottom * y) - 1, round(right * x) - 1)
        for top, left, bottom, right in boxes
    ]


class _Canvas:
    """A white sheet of captioned rows of cells, filled from the top."""

    def __init__(self, rows: int, columns: int) -> None:
        self._columns = columns
        size = (
            2 * _MARGIN + columns * (CELL + _GAP) - _GAP,
            2 * _MARGIN + 2 * _CAPTION + rows * (CELL + _CAPTION + _GAP),
        )
        self._image = Image.new("RGB", size, (255, 255, 255))
        self._draw = ImageDraw.Draw(self._image)
        self._top = _MARGIN
        self._bold, self._font = ImageFont.load_default(16), ImageFont.load_default(13)

    def head(self, title: str, columns: Sequence[str]) -> None:
        """Write what the sheet and its columns show."""
        self._text(self._bold, title)
        self._top += _CAPTION
        for column, label in enumerate(columns):
            self._draw.text((self._left(column), self._top), label, (90, 90, 90), self._font)

    def row(self, caption: str) -> None:
        """Begin the next row."""
        self._top += _CAPTION if self._top == _MARGIN + _CAPTION else CELL + _GAP
        self._text(self._font, caption)
        self._top += _CAPTION
        for column in range(self._columns):
            left = self._left(column)
            self._draw.rectangle(
                (left, self._top, left + CELL - 1, self._top + CELL - 1), (238, 238, 238)
            )

    def put(
        self,
        column: int,
        picture: Pixels,
        *,
        note: str = "",
        frame: tuple[int, int, int] | None = None,
        marks: Sequence[Box] = (),
    ) -> None:
        """Set a picture into the middle of a cell of the row; column -1 is the last."""
        height, width = picture.shape[:2]
        left = self._left(column % self._columns) + (CELL - width) // 2
        top = self._top + (CELL - height) // 2
        self._image.paste(Image.fromarray(picture), (left, top))
        for box, color in zip(marks, _COLORS, strict=False):
            y, x, bottom, right = box
            corners = (left + x, top + y, left + right, top + bottom)
            self._draw.rectangle(corners, outline=color, width=2)
        if frame is not None:
            corners = (left, top, left + width - 1, top + height - 1)
            self._draw.rectangle(corners, outline=frame, width=1)
        if note:
            ends = self._draw.textbbox((left + 4, top + 3), note, self._font)
            self._draw.rectangle(
                (ends[0] - 3, ends[1] - 2, ends[2] + 3, ends[3] + 2), (255, 255, 255)
            )
            self._draw.text((left + 4, top + 3), note, (0, 0, 0), self._font)

    def pixels(self) -> Pixels:
        """The sheet, (H, W, 3)."""
        return np.asarray(self._image)

    def _left(self, column: int) -> int:
        return _MARGIN + column * (CELL + _GAP)

    def _text(self, font: Any, text: str) -> None:
        """One line at the left; what is too long ends in dots."""
        room = self._image.width - 2 * _MARGIN
        text = " ".join(text.split("\n"))
        if font.getlength(text) > room:
            while text and font.getlength(text + "...") > room:
                text = text[:-1]
            text += "..."
        self._draw.text((_MARGIN, self._top + 2), text, (0, 0, 0), font)
