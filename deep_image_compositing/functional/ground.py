"""Where a subject stands: which parts of its outline touch the ground, found from its alpha alone.

Pictures are single planes (h, w); rows count to the edges of pixels, the first lies from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.3  # rows a column by which ground may rise between two points that both touch it
NEAR = 0.02  # height up to which a point touches the ground, as a share of the subject's size
CUT = 0.4  # share of a subject's columns from which on, cut off below, it has no ground left
SMALL = 0.15  # share of the largest part below which a part stands only with the one beside it
LOW = 0.35  # height of the largest part within which another part's foot is on the same ground
_COARSE = 128  # pixels on the long side at which connected parts are told apart
_SPECK = 0.01  # share of the largest part below which a part is noise
_BESIDE = 0.08  # of the subject's size: no ground so near to where it is cut off


@dataclass(frozen=True, eq=False)
class Stand:
    """A connected part of a subject, and the ground beneath it."""

    alpha: Tensor  # (h, w), of this part alone
    lowest: Tensor  # (w,) row at which its outline ends below; -inf where it has none
    ground: Tensor  # (w,) row of the ground in each column
    touches: Tensor  # (w,) boolean, where it touches the ground
    cut: Tensor  # (w,) boolean, where it is cut off below, and just beside
    size: float  # Square root of its area: a length that suits people, cars and boxes alike

    @property
    def foot(self) -> float:
        """The lowest row at which it touches the ground."""
        return float(self.ground[self.touches].max())

    @property
    def height(self) -> float:
        """From its highest row to the ground."""
        rows = (self.alpha > 0.5).any(1).nonzero()
        return self.foot - float(rows[0, 0])

    def line(self) -> tuple[float, float, float]:
        """A straight ground line below all that touches: its row at a column, that, its slope."""
        columns = self.touches.nonzero()[:, 0].double() + 0.5
        rows = self.lowest[self.touches].double()
        middle = columns.mean()
        spread = (columns - middle).square().sum()
        slope = ((columns - middle) * (rows - rows.mean())).sum() / spread.clamp_min(1e-9)
        slope = slope.clamp(-SLOPE, SLOPE)
        row = (rows - slope * (columns - middle)).max()
        return float(row), float(middle), float(slope)


def find_stands(alpha: Tensor, cut: float | None = None) -> list[Stand]:
    """The parts of a subject that stand on the ground, the largest first; none if all is cut off.

    Ground rises with distance in a photograph: what touches it is lowest in its surroundings, which
    count the less the farther they are away (``SLOPE``). So both feet of a walker touch, and a
    raised hand or the hem of a coat does not. ``alpha`` is (h, w) in [0, 1], ``cut`` the row at
    which the subject is cut off from its ground, if it is.
    """
    stands = [stand for part in _parts(alpha) if (stand := _stand(part, cut)) is not None]
    if not stands:
        return []
    highest = stands[0].foot - LOW * stands[0].height  # above it a part is in the air
    return [stand for stand in stands if stand.foot >= highest]


def _stand(alpha: Tensor, cut: float | None) -> Stand | None:
    """The ground beneath a part; None where none of it is left."""
    lowest = _lowest(alpha)
    there = lowest.isfinite()
    size = float(alpha.sum().clamp_min(1).sqrt())
    cut_off = torch.zeros_like(there)
    if cut is not None:
        cut_off = there & (lowest > cut - 1.5)
        if float(cut_off.sum()) >= CUT * float(there.sum()):
            return None
        reach = round(_BESIDE * size) + 1
        cut_off = F.max_pool1d(cut_off.float()[None], 2 * reach + 1, 1, reach)[0] > 0
    columns = torch.arange(len(lowest), dtype=lowest.dtype, device=lowest.device)
    distance = (columns[:, None] - columns).abs()
    support = (lowest - SLOPE * distance).amax(1)
    slack = max(0.5, NEAR * size)
    touches = _rest(lowest, there & ~cut_off & (lowest >= support - slack), slack)
    firm = touches & (lowest >= support - max(0.5, 0.1 * NEAR * size))
    if not firm.any():
        return None
    ground = _interpolate(columns, columns[firm], lowest[firm])
    return Stand(alpha, lowest, ground, touches, cut_off, size)


def _rest(lowest: Tensor, touches: Tensor, slack: float) -> Tensor:
    """``touches`` (w,) without what hangs: from which the outline goes down, at either end."""
    rows, kept = lowest.tolist(), touches.tolist()
    for touching, run in groupby(range(len(rows)), touches.tolist().__getitem__):
        columns = [*run]
        before = _next_row(rows, range(columns[0], -1, -1), slack)
        after = _next_row(rows, range(columns[-1], len(rows)), slack)
        if touching and max(before, after) > max(rows[x] for x in columns):
            kept[columns[0] : columns[-1] + 1] = [False] * len(columns)
    return torch.tensor(kept, device=touches.device)


def _next_row(rows: list[float], columns: range, slack: float) -> float:
    """The first of ``rows``, along ``columns``, that differs from the first by over ``slack``."""
    first = rows[columns[0]]
    return next((rows[x] for x in columns if abs(rows[x] - first) > slack), -math.inf)


def _lowest(alpha: Tensor) -> Tensor:
    """(w,) where each column's outline, at one half, ends below, to a part of a pixel."""
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
    """``rows`` of increasing ``columns`` at other columns: linear between, level beyond."""
    right = torch.searchsorted(columns, at).clamp(0, len(columns) - 1)
    left = (right - 1).clamp_min(0)
    span = (columns[right] - columns[left]).clamp_min(1e-6)
    share = ((at - columns[left]) / span).clamp(0, 1)
    return torch.lerp(rows[left], rows[right], share)


def _parts(alpha: Tensor) -> list[Tensor]:
    """The large connected parts of ``alpha``, the largest first, each with small ones beside it."""
    labels = _labels(alpha)
    names = labels.unique()
    areas = {int(name): float(alpha[labels == name].sum()) for name in names if name}
    if not areas:
        return []
    order = sorted(areas, key=lambda name: (-areas[name], name))
    most = areas[order[0]]
    columns = torch.arange(alpha.shape[1], device=alpha.device, dtype=alpha.dtype)

    def middle(name: int) -> float:
        weight = (alpha * (labels == name)).sum(0)
        return float((weight * columns).sum() / weight.sum())

    large = [name for name in order if areas[name] >= SMALL * most]
    members = {name: [name] for name in large}
    for name in order[len(large) :]:
        if areas[name] >= _SPECK * most:
            nearest = min(large, key=lambda other: abs(middle(other) - middle(name)))
            members[nearest].append(name)
    wanted = [torch.tensor(members[name], device=labels.device) for name in large]
    return [alpha * torch.isin(labels, names) for names in wanted]


def _labels(alpha: Tensor) -> Tensor:
    """(h, w) int64: a number for each connected part, 0 for none; told apart at a coarse size."""
    height, width = alpha.shape
    scale = min(1.0, _COARSE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    inside = F.adaptive_max_pool2d(alpha[None], size)[0] > 0.5
    numbers = torch.arange(1, inside.numel() + 1, device=alpha.device).view(inside.shape).float()
    labels = numbers * inside
    while True:  # the largest number of each part spreads through it
        before = labels
        for _ in range(8):
            labels = F.max_pool2d(labels[None], 3, 1, 1)[0] * inside
        if torch.equal(labels, before):
            break
    large = F.interpolate(labels[None, None], (height, width), mode="nearest-exact")[0, 0]
    return large.long()
