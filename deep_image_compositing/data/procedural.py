"""Alphas drawn from rules: an outline that crosses the picture, and something fine along it.

Real mattes are few. These have no end, and any photograph may be set under them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from deep_image_compositing.errors import UsageError

Plane = NDArray[np.float32]

OVERSAMPLING = 2
"""Pixels drawn along each side of a pixel of the result."""


@dataclass(frozen=True)
class _Shape:
    """A subject with a plain outline, at the size at which it is drawn."""

    distance: Plane  # (N, N), roughly the pixels from the outline, negative inside
    normal: Plane  # (N, N), direction in radians in which the distance grows

    @property
    def side(self) -> int:
        return len(self.distance)

    @property
    def solid(self) -> Image.Image:
        """The subject as a picture (L)."""
        return Image.fromarray((255 * (self.distance < 0)).astype(np.uint8))


def draw_alpha(rng: np.random.Generator, size: int, kind: str | None = None) -> Image.Image:
    """Draw the alpha (L, 255 = opaque) of a subject whose outline crosses a square picture.

    Its side has ``size`` pixels, at least 8. Without a ``kind`` of ``KINDS`` one is drawn, the
    commoner ones more often.
    """
    if size < 8:
        raise UsageError(f"a drawn alpha has at least 8 pixels a side, got {size}")
    if kind is None:
        kind = str(rng.choice(list(KINDS), p=[share for _, share in KINDS.values()]))
    if kind not in KINDS:
        raise UsageError(f"no kind of alpha {kind!r}; there are {', '.join(KINDS)}")
    picture = KINDS[kind][0](rng, _shape(rng, size * OVERSAMPLING))
    blur = float(rng.choice([0.0, 0.4, 0.8], p=[0.4, 0.4, 0.2]))
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(blur * OVERSAMPLING))
    return picture.resize((size, size), Image.Resampling.BOX)


def _noise(rng: np.random.Generator, side: int, cells: int) -> Plane:
    """Smooth noise (side, side) in about [-1, 1] that varies over ``side / cells`` pixels."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32))
    box = (1, 1, cells + 1, cells + 1)
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC, box), np.float32)


def _shape(rng: np.random.Generator, side: int) -> _Shape:
    """A subject that fills roughly one side of the picture, or a bump that rises into it."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32),) * 2, indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    bend = rng.uniform(-0.2, 0.8)
    field = along + bend * across**2 + rng.uniform(-0.3, 0.3)
    field += rng.uniform(0.02, 0.25) * _noise(rng, side, int(rng.integers(2, 7)))
    dy, dx = np.gradient(field)
    slope = np.hypot(dx, dy) + 1e-6
    return _Shape(field / slope, np.arctan2(dy, dx))


def _strands(
    rng: np.random.Generator,
    shape: _Shape,
    number: int,
    length: float,
    width: float,
    lean: float,
    curl: float,
    depth: float,
) -> Image.Image:
    """The subject with strands that start within ``depth`` of its outline, in drawn pixels."""
    near = np.argwhere((shape.distance < 0) & (shape.distance > -depth))
    layers = [shape.solid]
    if not len(near):
        return layers[0]
    bends = [_noise(rng, shape.side, cells) for cells in (3, 9)]
    steps = max(3, int(length / (3 * OVERSAMPLING)))
    # Strands of one opacity are drawn together, and the more opaque wins where they cross.
    for opacity in (255, int(rng.integers(150, 230)), int(rng.integers(60, 140))):
        layer = Image.new("L", (shape.side, shape.side))
        draw = ImageDraw.Draw(layer)
        for row, column in near[rng.integers(0, len(near), number // 3)]:
            direction = shape.normal[row, column] + lean + rng.normal(0, 0.25)
            turn = rng.normal(0, curl) / steps
            stride = length * rng.uniform(0.3, 1.0) / steps
            thick = max(1, round(width * rng.uniform(0.4, 1.0)))
            x, y = float(column), float(row)
            points = [(x, y)]
            for _ in range(steps):
                r, c = (min(max(int(v), 0), shape.side - 1) for v in (y, x))
                heading = direction + 0.8 * bends[0][r, c] + 0.4 * bends[1][r, c]
                x, y = x + stride * np.cos(heading), y + stride * np.sin(heading)
                direction += turn
                points.append((x, y))
            cut = 1 + 2 * len(points) // 3
            draw.line(points[:cut], fill=opacity, width=thick, joint="curve")
            draw.line(points[cut - 1 :], fill=opacity, width=max(1, thick // 2))
        layers.append(layer)
    return functools.reduce(ImageChops.lighter, layers)


def _hair(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """Long strands, combed one way, some of them astray."""
    return _strands(
        rng,
        shape,
        length=shape.side * rng.uniform(0.15, 0.6),
        number=int(rng.integers(20, 260)),
        width=OVERSAMPLING * rng.uniform(0.6, 2.2),
        lean=rng.uniform(-1.4, 1.4),
        curl=rng.uniform(0.2, 2.5),
        depth=OVERSAMPLING * rng.uniform(3, 20),
    )


def _fur(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """Short, dense strands."""
    return _strands(
        rng,
        shape,
        number=int(rng.integers(400, 1400)),
        length=OVERSAMPLING * rng.uniform(5, 18),
        width=OVERSAMPLING * rng.uniform(0.5, 1.6),
        lean=rng.uniform(-1.0, 1.0),
        curl=rng.uniform(0.1, 0.8),
        depth=OVERSAMPLING * rng.uniform(2, 6),
    )


def _foliage(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """Leaves on both sides of the outline, with sky between them."""
    reach = OVERSAMPLING * rng.uniform(8, 40)
    picture = Image.fromarray((255 * (shape.distance < -reach / 2)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    near = np.argwhere(np.abs(shape.distance) < reach)
    if not len(near):
        return picture
    size = OVERSAMPLING * rng.uniform(2, 9)
    lean = rng.uniform(0, np.pi)
    for row, column in near[rng.integers(0, len(near), int(rng.integers(80, 500)))]:
        angle, long = lean + rng.normal(0, 0.8), size * rng.uniform(0.4, 1.3)
        slim = long * rng.uniform(0.15, 0.45)
        turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        u, v = long * np.cos(turn), slim * np.sin(turn) * np.abs(np.sin(turn)) ** 0.3
        x = column + u * np.cos(angle) - v * np.sin(angle)
        y = row + u * np.sin(angle) + v * np.cos(angle)
        draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    return picture


def _lace(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """A border full of regular holes: lace, knitting, nets, fences."""
    y, x = np.mgrid[: shape.side, : shape.side].astype(np.float32)
    angle, pitch = rng.uniform(0, np.pi), OVERSAMPLING * rng.uniform(4, 14)
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / pitch)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / pitch) * rng.uniform(0.6, 1.4)
    bend = 2 * _noise(rng, shape.side, 4)
    pattern = np.cos(u + bend) * np.cos(v + bend)
    open_ = np.clip((pattern - rng.uniform(-0.4, 0.6)) * 4, 0, 1)
    border = np.clip((shape.distance + OVERSAMPLING * rng.uniform(10, 45)) / 4, 0, 1)
    through = rng.choice([0.0, rng.uniform(0.1, 0.5)])
    alpha = (shape.distance < 0) * (1 - (1 - through) * open_ * border)
    return Image.fromarray((255 * alpha + 0.5).astype(np.uint8))


def _veil(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """A border that is seen through: glass, gauze, smoke, wings."""
    side = shape.side
    depth = OVERSAMPLING * rng.uniform(8, 50)
    level = rng.uniform(0.15, 0.8) + rng.uniform(0.05, 0.35) * _noise(
        rng, side, int(rng.integers(2, 12))
    )
    inner = np.clip(-(shape.distance + depth) / (OVERSAMPLING * rng.uniform(0.5, 8)), 0, 1)
    outer = np.clip(-shape.distance / (OVERSAMPLING * rng.uniform(0.5, 8)), 0, 1)
    alpha = outer * np.clip(level + (1 - level) * inner, 0, 1)
    return Image.fromarray((255 * alpha + 0.5).astype(np.uint8))


def _defocus(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """An outline out of focus or in motion, sharper here than there."""
    sharp, radius = shape.solid, OVERSAMPLING * rng.uniform(1.5, 8)
    soft = sharp.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(radius / 2))
    share = np.clip(0.5 + 0.8 * _noise(rng, shape.side, 3), 0, 1)
    return Image.composite(soft, sharp, Image.fromarray((255 * share).astype(np.uint8)))


KINDS: dict[str, tuple[Callable[[np.random.Generator, _Shape], Image.Image], float]] = {
    "hair": (_hair, 0.34),
    "fur": (_fur, 0.24),
    "foliage": (_foliage, 0.12),
    "lace": (_lace, 0.06),
    "veil": (_veil, 0.1),
    "defocus": (_defocus, 0.14),
}
"""What ``draw_alpha`` draws, and how often."""
