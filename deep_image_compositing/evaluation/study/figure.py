"""The figure of a scored study: mean scores with their intervals, drawn with Pillow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deep_image_compositing.evaluation.study.score import Scores

_WIDTH, _ROW, _TOP, _BOTTOM, _MARGIN = 960, 38, 118, 92, 28
_SCALE = 4  # pixels a unit while drawing; the picture has half of them, for smooth edges
_INK, _SOFT, _LINE = "#1d1d1f", "#63666b", "#dfe1e5"
_BAR, _BEST, _CHANCE = "#9db7d1", "#2f6fb0", "#b3541e"


def draw(scores: Scores) -> NDArray[np.uint8]:
    """A bar a method, best on top, as (H, W, 3) uint8; 1920 pixels wide.

    A bar ends at the mean score and carries its confidence interval; the dashed line is where a
    method among equals would be. On the right stand the mean and the number of sets won.
    """
    chart = _Chart(scores)
    people = "person" if scores.people == 1 else "people"
    chart.text(_MARGIN, 24, "Mean score in the user study: lower is better", 21, _INK)
    chart.text(
        _MARGIN, 56, f"{scores.people} {people}, {scores.answers} answers on "
        f"{scores.sets_answered} sets; best three score 1, 2, 3, others 8; {scores.level:.0%} "
        "intervals", 14,
    )  # fmt: skip
    bottom = _TOP + _ROW * len(scores.methods)
    chart.text(chart.right + 58, _TOP - 24, "mean", 13, anchor="ra")
    chart.text(_WIDTH - _MARGIN, _TOP - 24, "sets won", 13, anchor="ra")
    for tick in range(1, 9):
        chart.line(chart.at(tick), _TOP - 4, chart.at(tick), bottom + 6, _LINE, 1)
        chart.text(chart.at(tick), bottom + 10, str(tick), 13, anchor="ma")
    for number in range(len(scores.methods)):
        chart.row(number)
    x = chart.at(scores.chance)
    for y in range(_TOP - 4, bottom + 6, 9):
        chart.line(x, y, x, min(y + 5, bottom + 6), _CHANCE, 1.5)
    chart.text(x, bottom + 30, f"by chance {scores.chance:.2f}", 13, _CHANCE, "ma")
    chart.line(chart.left, _TOP - 4, chart.left, bottom + 6, _SOFT, 1)
    chart.text(_MARGIN, chart.height - 30, scores.friedman_sentence, 14)
    size = (_WIDTH * 2, chart.height * 2)
    return np.asarray(chart.image.resize(size, Image.Resampling.BOX))


class _Chart:
    """Draws in units of which the picture is 960 wide."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.height = _TOP + _ROW * len(scores.methods) + _BOTTOM
        self.image = Image.new("RGB", (_WIDTH * _SCALE, self.height * _SCALE), "white")
        self.brush = ImageDraw.Draw(self.image)
        names = max(self.length(row.method) for row in scores.methods)
        self.left = _MARGIN + min(names, 260) + 14
        self.right = _WIDTH - _MARGIN - 190

    def row(self, number: int) -> None:
        """One method's name, bar, interval and figures."""
        row, y = self.scores.methods[number], _TOP + _ROW * number + _ROW / 2
        name = row.method
        while self.length(name) > 262:
            name = name[:-2] + "…"
        self.text(self.left - 12, y, name, 15, _INK, "rm")
        self.box(self.left, y - 10, self.at(row.score), y + 10, _BAR if number else _BEST)
        low, high = self.at(row.low), self.at(row.high)
        self.line(low, y, high, y, _INK, 2)
        for end in (low, high):
            self.line(end, y - 6, end, y + 6, _INK, 2)
        self.text(self.right + 58, y, f"{row.score:.2f}", 15, _INK, "rm")
        self.text(_WIDTH - _MARGIN, y, f"{row.sets_won:.3g}", 15, _INK, "rm")

    def at(self, score: float) -> float:
        """Where a score from 1 to 8 lies; bars begin a little left of 1, so that 1 is seen."""
        return self.left + (score - 0.5) / 7.5 * (self.right - self.left)

    def length(self, text: str) -> float:
        return float(ImageFont.load_default(15 * _SCALE).getlength(text)) / _SCALE

    def text(
        self, x: float, y: float, text: str, size: float, color: str = _SOFT, anchor: str = "la"
    ) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self.brush.text((x * _SCALE, y * _SCALE), text, color, font, anchor=anchor)

    def line(self, x0: float, y0: float, x1: float, y1: float, color: str, width: float) -> None:
        """A line to the right or down."""
        dx, dy = (0.0, width / 2) if y0 == y1 else (width / 2, 0.0)
        self.box(x0 - dx, y0 - dy, x1 + dx, y1 + dy, color)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: str) -> None:
        corners = [round(value * _SCALE) for value in (x0, y0, x1, y1)]
        if corners[2] > corners[0] and corners[3] > corners[1]:
            self.brush.rectangle((*corners[:2], corners[2] - 1, corners[3] - 1), color)
