"""The figure of a scored study: mean scores with their intervals, drawn with Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    from deep_image_compositing.evaluation.study.score import Scores

_WIDTH, _ROW, _TOP, _BOTTOM, _MARGIN = 960, 38, 118, 92, 28
_FINER = 2  # pixels a unit, and again as much while drawing, for smooth edges
_INK, _SOFT, _LINE = "#1d1d1f", "#63666b", "#dfe1e5"
_BAR, _BEST, _INTERVAL = "#9db7d1", "#2f6fb0", "#1d1d1f"


def draw(scores: Scores) -> NDArray[np.uint8]:
    """A bar a method, best on top, as (H, W, 3) uint8; 1920 pixels wide.

    A bar ends at the mean score and carries its confidence interval; the dashed line is where a
    method among equals would be. On the right stand the mean and the number of sets won.
    """
    return _Chart(scores).pixels()


class _Chart:
    """Draws in units of which the picture is 960 wide."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.height = _TOP + _ROW * len(scores.methods) + _BOTTOM
        self.scale = 2 * _FINER
        self.image = Image.new("RGB", (_WIDTH * self.scale, self.height * self.scale), "white")
        self.brush = ImageDraw.Draw(self.image)
        names = max(self.length(row.method, 15) for row in scores.methods)
        self.left = _MARGIN + min(names, 260) + 14
        self.right = _WIDTH - _MARGIN - 190

    def pixels(self) -> NDArray[np.uint8]:
        scores = self.scores
        self.text((_MARGIN, 24), "Mean score in the user study: lower is better", 21, _INK)
        people = "person" if scores.people == 1 else "people"
        about = (
            f"{scores.people} {people}, {scores.answers} answers on {scores.sets_answered} sets;"
            f" best three score 1, 2, 3, others 8; {scores.level:.0%} intervals"
        )
        self.text((_MARGIN, 56), about, 14, _SOFT)
        bottom = _TOP + _ROW * len(scores.methods)
        self.text((self.right + 58, _TOP - 24), "mean", 13, _SOFT, "ra")
        self.text((_WIDTH - _MARGIN, _TOP - 24), "sets won", 13, _SOFT, "ra")
        for tick in range(1, 9):
            self.line((self.at(tick), _TOP - 4), (self.at(tick), bottom + 6), _LINE, 1)
            self.text((self.at(tick), bottom + 10), str(tick), 13, _SOFT, "ma")
        for number in range(len(scores.methods)):
            self._row(number, _TOP + _ROW * number + _ROW / 2)
        self._chance(bottom)
        self.line((self.left, _TOP - 4), (self.left, bottom + 6), _SOFT, 1)
        self.text((_MARGIN, self.height - 30), _verdict(scores), 14, _SOFT)
        size = (_WIDTH * 2, self.height * 2)
        return np.asarray(self.image.resize(size, Image.Resampling.BOX))

    def _row(self, number: int, middle: float) -> None:
        row = self.scores.methods[number]
        name = row.method
        while self.length(name, 15) > 262:
            name = name[:-2] + "…"
        self.text((self.left - 12, middle), name, 15, _INK, "rm")
        self.box(
            (self.left, middle - 10, self.at(row.score), middle + 10), _BAR if number else _BEST
        )
        low, high = self.at(row.low), self.at(row.high)
        self.line((low, middle), (high, middle), _INTERVAL, 2)
        for end in (low, high):
            self.line((end, middle - 6), (end, middle + 6), _INTERVAL, 2)
        self.text((self.right + 58, middle), f"{row.score:.2f}", 15, _INK, "rm")
        self.text((_WIDTH - _MARGIN, middle), f"{row.sets_won:.3g}", 15, _INK, "rm")

    def _chance(self, bottom: float) -> None:
        x = self.at(self.scores.chance)
        y = float(_TOP - 4)
        while y < bottom + 6:
            self.line((x, y), (x, min(y + 5, bottom + 6)), "#b3541e", 1.5)
            y += 9
        self.text((x, bottom + 30), f"by chance {self.scores.chance:.2f}", 13, "#b3541e", "ma")

    # In units

    def at(self, score: float) -> float:
        """Where a score from 1 to 8 lies; bars begin a little left of 1, so that 1 is seen."""
        return self.left + (score - 0.5) / 7.5 * (self.right - self.left)

    def length(self, text: str, size: float) -> float:
        return float(self.font(size).getlength(text)) / self.scale

    def font(self, size: float) -> FreeTypeFont | BitmapFont:
        return ImageFont.load_default(size * self.scale)

    def text(
        self, at: tuple[float, float], text: str, size: float, color: str, anchor: str = "la"
    ) -> None:
        where = (at[0] * self.scale, at[1] * self.scale)
        self.brush.text(where, text, color, self.font(size), anchor=anchor)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], color: str, width: float
    ) -> None:
        half = width / 2
        (x0, y0), (x1, y1) = sorted((start, end))
        flat = y0 == y1
        self.box((x0, y0 - half, x1, y1 + half) if flat else (x0 - half, y0, x1 + half, y1), color)

    def box(self, corners: tuple[float, float, float, float], color: str) -> None:
        x0, y0, x1, y1 = (round(value * self.scale) for value in corners)
        if x1 > x0 and y1 > y0:
            self.brush.rectangle((x0, y0, x1 - 1, y1 - 1), color)


def _verdict(scores: Scores) -> str:
    from deep_image_compositing.evaluation.study.score import friedman_sentence

    return friedman_sentence(scores)
