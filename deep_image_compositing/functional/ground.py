"""Detection of ground contact from a subject's alpha.

Images are single planes (h, w). Row coordinates refer to pixel edges: the first row spans 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.3  # maximum slope of the ground, in rows per column, between two contact points
NEAR = 0.02  # maximum height of contact points, as a fraction of the subject's size
CUT = 0.4  # fraction of a subject's columns cut off below, from which it has no ground
SMALL = 0.15  # fraction of the largest part's area below which a part joins its neighbour
LOW = 0.35  # fraction of the largest part's height within which others share its ground
_COARSE = 128  # long side in pixels at which connected parts are labelled
_SPECK = 0.01  # fraction of the largest part's area below which a part is noise
_BESIDE = 0.08  # margin without ground beside a cut, as a fraction of the subject's size


@dataclass(frozen=True, eq=False)
class Stand:
    """A connected part of a subject and the ground below it."""

    alpha: Tensor  # (h, w), of this part only
    lowest: Tensor  # (w,) bottom row of its outline in each column; -inf where it has none
    ground: Tensor  # (w,) row of the ground in each column
    touches: Tensor  # (w,) boolean: columns with ground contact
    cut: Tensor  # (w,) boolean: columns in or near which it is cut off below
    size: float  # square root of its area, a length scale for people, cars and boxes alike

    @property
    def foot(self) -> float:
        """Lowest row with ground contact."""
        return float(self.ground[self.touches].max())

    @property
    def height(self) -> float:
        """Height in rows above ``foot``."""
        rows = (self.alpha > 0.5).any(1).nonzero()
        return self.foot - float(rows[0, 0])

    def line(self) -> tuple[float, float, float]:
        """Straight ground line below all contact points: row, column of that row, and slope."""
        columns = self.touches.nonzero()[:, 0].double() + 0.5
        rows = self.lowest[self.touches].double()
        middle = columns.mean()
        spread = (columns - middle).square().sum()
        slope = ((columns - middle) * (rows - rows.mean())).sum() / spread.clamp_min(1e-9)
        slope = slope.clamp(-SLOPE, SLOPE)
        row = (rows - slope * (columns - middle)).max()
        return float(row), float(middle), float(slope)


def find_stands(alpha: Tensor, cut: float | None = None) -> list[Stand]:
    """The parts of a subject that stand on the ground, largest first; empty if it is all cut off.

    As ground rises with distance in a photograph, contact points are the lowest in their
    surroundings, with a tolerance of ``SLOPE`` times the distance: both feet of a walking person
    touch the ground, but not a raised hand or the hem of a coat. ``alpha`` is (h, w) in [0, 1],
    ``cut`` the row at which the subject is cut off, if any.
    """
    stands = [stand for part in _parts(alpha) if (stand := _stand(part, cut)) is not None]
    if not stands:
        return []
    highest = stands[0].foot - LOW * stands[0].height  # parts above it are in the air
    return [stand for stand in stands if stand.foot >= highest]


def _stand(alpha: Tensor, cut: float | None) -> Stand | None:
    """The ground below a part, or None if it has no contact."""
    lowest = _lowest(alpha)
    exists = lowest.isfinite()
    size = float(alpha.sum().clamp_min(1).sqrt())
    cut_off = torch.zeros_like(exists)
    if cut is not None:
        cut_off = exists & (lowest > cut - 1.5)
        if float(cut_off.sum()) >= CUT * float(exists.sum()):
            return None
        reach = round(_BESIDE * size) + 1
        cut_off = F.max_pool1d(cut_off.float()[None], 2 * reach + 1, 1, reach)[0] > 0
    columns = torch.arange(len(lowest), dtype=lowest.dtype, device=lowest.device)
    distance = (columns[:, None] - columns).abs()
    support = (lowest - SLOPE * distance).amax(1)
    slack = max(0.5, NEAR * size)
    touches = _drop_hanging(lowest, exists & ~cut_off & (lowest >= support - slack), slack)
    firm = touches & (lowest >= support - max(0.5, 0.1 * NEAR * size))
    if not firm.any():
        return None
    ground = _interpolate(columns, columns[firm], lowest[firm])
    return Stand(alpha, lowest, ground, touches, cut_off, size)


def _drop_hanging(lowest: Tensor, touches: Tensor, slack: float) -> Tensor:
    """``touches`` (w,) without runs from which the outline continues downwards at either end."""
    rows, result = lowest.tolist(), touches.tolist()
    for touching, run in groupby(range(len(rows)), touches.tolist().__getitem__):
        columns = [*run]
        before = _next_row(rows, range(columns[0], -1, -1), slack)
        after = _next_row(rows, range(columns[-1], len(rows)), slack)
        if touching and max(before, after) > max(rows[x] for x in columns):
            result[columns[0] : columns[-1] + 1] = [False] * len(columns)
    return torch.tensor(result, device=touches.device)


def _next_row(rows: list[float], columns: range, slack: float) -> float:
    """First row along ``columns`` that differs from the start by more than ``slack``."""
    first = rows[columns[0]]
    return next((rows[x] for x in columns if abs(rows[x] - first) > slack), -math.inf)


def _lowest(alpha: Tensor) -> Tensor:
    """Bottom (w,) of each column's outline at alpha 0.5, with subpixel precision."""
    height = alpha.shape[0]
    rows = torch.arange(height, device=alpha.device)[:, None]
    last = torch.where(alpha > 0.5, rows, -1).amax(0)
    below = F.pad(alpha, (0, 0, 0, 1))
    at = last.clamp_min(0)[None]
    inside, outside = below.gather(0, at)[0], below.gather(0, at + 1)[0]
    share = (inside - 0.5) / (inside - outside).clamp_min(1e-6)
    end = torch.where(last == height - 1, 1.0, 0.5 + share.clamp(0, 1))
    return torch.where(last < 0, -torch.inf, last + end)


def _interpolate(at: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Interpolate ``rows`` over increasing ``columns`` linearly, constant beyond the ends."""
    right = torch.searchsorted(columns, at).clamp(0, len(columns) - 1)
    left = (right - 1).clamp_min(0)
    span = (columns[right] - columns[left]).clamp_min(1e-6)
    share = ((at - columns[left]) / span).clamp(0, 1)
    return torch.lerp(rows[left], rows[right], share)


def _parts(alpha: Tensor) -> list[Tensor]:
    """Large connected parts of ``alpha``, largest first, each including its small neighbours."""
    labels = _label(alpha)
    areas = {int(part): float(alpha[labels == part].sum()) for part in labels.unique() if part}
    if not areas:
        return []
    order = sorted(areas, key=lambda part: (-areas[part], part))
    largest = areas[order[0]]
    columns = torch.arange(alpha.shape[1], device=alpha.device, dtype=alpha.dtype)

    def center(part: int) -> float:
        weight = (alpha * (labels == part)).sum(0)
        return float((weight * columns).sum() / weight.sum())

    groups = {part: [part] for part in order if areas[part] >= SMALL * largest}
    for part in order[len(groups) :]:
        if areas[part] >= _SPECK * largest:
            nearest = min(groups, key=lambda large: abs(center(large) - center(part)))
            groups[nearest].append(part)
    return [alpha * torch.isin(labels, labels.new_tensor(group)) for group in groups.values()]


def _label(alpha: Tensor) -> Tensor:
    """Label connected parts from 1, (h, w) int64, with 0 for background, at a coarse size."""
    height, width = alpha.shape
    scale = min(1.0, _COARSE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    inside = F.adaptive_max_pool2d(alpha[None], size)[0] > 0.5
    numbers = torch.arange(1, inside.numel() + 1, device=alpha.device).view(inside.shape).float()
    labels = numbers * inside
    while True:  # spread the largest number of each part
        before = labels
        for _ in range(8):
            labels = F.max_pool2d(labels[None], 3, 1, 1)[0] * inside
        if torch.equal(labels, before):
            break
    large = F.interpolate(labels[None, None], (height, width), mode="nearest-exact")[0, 0]
    return large.long()
