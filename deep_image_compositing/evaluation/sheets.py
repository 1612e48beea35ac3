"""Contact sheets of an evaluation: all methods on one sample, with magnified crops of its rim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.evaluation.measures import MEASURES
from deep_image_compositing.evaluation.testsets import Sample
from deep_image_compositing.evaluation.testsets.base import planes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.functional.sheets import NEUTRAL, contact_sheet
from deep_image_compositing.images import read_image
from deep_image_compositing.placement import cover, resample

FOLDER = "sheets"  # folder of the sheets, inside the report's
LAYOUT = 3  # version of the sheets; raise it when they show the same results differently
CELL = 288  # side in pixels of the square in which a picture is shown
CROPS = 3  # magnified crops per sample
GAIN = 4  # factor by which errors are shown brighter

_ZOOMS = (1, 2, 3, 4, 6, 9)  # divisors of CELL
_SEARCH = 1024  # maximum long side of the pictures in which crops are searched for
_COLORS = ((0.9, 0.2, 0.2), (0.2, 0.55, 0.2), (0.2, 0.35, 0.9))
_LABEL = ("band_psnr", "psnr", "fmse", "halo", "seconds")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Row:
    """The result of one method on the sample."""

    name: str  # of the method
    base: Path  # path of its result pictures without suffixes
    record: Mapping[str, Any]  # from the bench

    def read(self, kind: str) -> Tensor | None:
        """Its ``composite``, ``alpha`` or ``mask`` (C, H, W), uint8; None if there is none."""
        path = self.base.with_name(f"{self.base.name}.{kind}.png")
        if "error" in self.record or not path.is_file():
            return None
        picture = planes(read_image(path).pixels)
        return picture if kind == "composite" else picture[:1]

    def caption(self) -> str:
        """Its name with its main figures or its error."""
        if "error" in self.record:
            return f"{self.name}: {' '.join(self.record['error'].split())}"
        values = self.record.get("measures", {})
        figures = (
            f"{MEASURES[key].name} {values[key]:.{MEASURES[key].digits}f} {MEASURES[key].unit}"
            for key in _LABEL
            if key in values
        )
        return "  ".join([self.name, *(text.rstrip() for text in figures)])


class _Column(NamedTuple):
    label: str
    picture: Tensor | None
    note: str = " "  # label of the last row
    last: Tensor | None = None


def draw(sample: Sample, grade: str, rows: Sequence[Row], rim: bool = True) -> Tensor:
    """The contact sheet of one sample in one grade, (3, H, W) in [0, 1].

    Columns are the photograph, the mask, the truth if there is one, and each method. Rows are the
    whole picture, ``CROPS`` crops of the rim, magnified without smoothing, and the error against
    the truth, ``GAIN`` times as bright (mean of the channels), or without truth the method's alpha.
    ``rim=False``, for harmonizers alone, omits the crops.
    """
    photograph, mask, truth = sample.inputs(grade)[0], sample.masks.get(grade), sample.composite
    size = (photograph.shape[-2], photograph.shape[-1])
    label = f"mask: {grade}" if rim else "mask"
    if mask is None:
        masks = ((f"{label}, found by {row.name}", row.read("mask")) for row in rows)
        label, mask = next((pair for pair in masks if pair[1] is not None), (label, None))
    first = _Column(f"{sample.name}, {size[1]} x {size[0]} pixels", photograph)
    zoom, boxes = choose_zoom(*size), list[Box]()
    if rim:
        first = first._replace(note="new background", last=cover(sample.background, size))
        boxes = choose_crops(interest(sample, rows), size, CELL // zoom)
    elif truth is not None:
        first = first._replace(note=f"{grade}, error x {GAIN}", last=_error(photograph, truth))
    columns = [first, _Column(label, mask, "true alpha" if rim else "  ", sample.alpha)]
    if truth is not None:
        columns.append(_Column("truth", truth))
    for row in rows:
        result = row.read("composite")
        if truth is None:
            note, last = f"alpha, {row.name}", row.read("alpha")
        else:
            note = f"error x {GAIN}, {row.name}"
            last = None if result is None else _error(result, truth)
        columns.append(_Column(row.caption(), result, note, last))
    parts = [{column.label: _unit(column.picture) for column in columns}]
    parts[0][first.label] = _outlined(photograph, boxes)
    for number, box in enumerate(boxes, start=1):
        name = f"crop {number}, x {zoom}: "
        parts.append({name + column.label: _unit(column.picture, box) for column in columns})
    parts.append({column.note: _unit(column.last) for column in columns})
    return torch.cat([contact_sheet(part, CELL) for part in parts], 1)


def _error(picture: Tensor, truth: Tensor) -> Tensor:
    """The absolute difference of 8-bit pictures, mean of the channels, ``GAIN`` times as bright."""
    return (picture.int() - truth.int()).abs().float().mean(0, keepdim=True) * GAIN


def _unit(picture: Tensor | None, box: Box | None = None) -> Tensor:
    """An 8-bit picture (C, H, W), or a crop of it, as (1, C, h, w) in [0, 1]; grey for None."""
    if picture is None:
        return torch.full((1, 1, 1, 1), NEUTRAL)
    top, left, bottom, right = box or (0, 0, None, None)
    return picture[None, :, top:bottom, left:right].float() / 255


def _outlined(picture: Tensor, boxes: Sequence[Box]) -> Tensor:
    """The picture with the crops outlined."""
    whole = _unit(picture).expand(-1, 3, -1, -1).clone()
    width = max(1, round(max(whole.shape[-2:]) / CELL * 2))
    for (top, left, bottom, right), color in zip(boxes, _COLORS, strict=False):
        inner = (..., slice(top + width, bottom - width), slice(left + width, right - width))
        content = whole[inner].clone()
        whole[..., top:bottom, left:right] = torch.tensor(color).view(3, 1, 1)
        whole[inner] = content
    return whole


# Choice of crops


def choose_zoom(height: int, width: int) -> int:
    """The magnification at which a crop shows about an eighth of the picture's short side."""
    return min(_ZOOMS, key=lambda zoom: abs(CELL / zoom - min(height, width) / 8))


def interest(sample: Sample, rows: Sequence[Row]) -> Tensor:
    """How interesting each place is, (1, 1, h, w), not negative, long side at most 1024.

    This is the softness of the true alpha; without one, the largest softness of all methods times
    the range of their composites.
    """
    if sample.alpha is not None:
        return _softness(sample.alpha)
    pairs = ((row.read("alpha"), row.read("composite")) for row in rows)
    results = [(_softness(a), _small(c)) for a, c in pairs if a is not None and c is not None]
    if not results:
        return torch.zeros_like(_small(sample.foreground[:1]))
    softness, composites = (torch.cat(parts) for parts in zip(*results, strict=True))
    low, high = composites.aminmax(dim=0, keepdim=True)
    softest = softness.amax(0, keepdim=True)
    differing = softest * (high - low).amax(1, keepdim=True)
    return differing if bool(differing.any()) else softest


def choose_crops(
    interest: Tensor, size: tuple[int, int], side: int, count: int = CROPS
) -> list[Box]:
    """The most interesting squares that do not overlap; one in the middle if none is interesting.

    Args:
        interest: (1, 1, h, w), not negative, of the picture at any scale.
        size: (height, width) of the picture.
        side: side of the squares in pixels of the picture, which they are cut down to.
        count: maximum number of squares.
    """
    height, width = size
    rows, columns = interest.shape[-2:]
    box_height, box_width = min(side, height), min(side, width)
    h, w = max(1, round(box_height * rows / height)), max(1, round(box_width * columns / width))
    sums = F.avg_pool2d(interest.double(), (h, w), stride=1)[0, 0]
    corners: list[tuple[int, int]] = []
    while len(corners) < count and float(sums.max()) > 0:
        y, x = divmod(int(sums.argmax()), sums.shape[1])
        top, left = round(y * height / rows), round(x * width / columns)
        corners.append((min(top, height - box_height), min(left, width - box_width)))
        # No other square may overlap this one.
        sums[max(0, y - h + 1) : y + h, max(0, x - w + 1) : x + w] = 0
    corners = corners or [((height - box_height) // 2, (width - box_width) // 2)]
    return [(top, left, top + box_height, left + box_width) for top, left in corners]


def _softness(alpha: Tensor) -> Tensor:
    value = _small(alpha)
    return 4 * value * (1 - value)


def _small(picture: Tensor) -> Tensor:
    """The picture as (1, C, h, w) in [0, 1], reduced to ``_SEARCH``."""
    height, width = picture.shape[-2:]
    if max(height, width) > _SEARCH:
        picture = resample(picture, fit_long_side(height, width, _SEARCH))
    return picture[None].float() / 255
