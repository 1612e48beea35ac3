"""Procedural alphas: an outline across the picture with hair, leaves or the like along it.

Real mattes are few; these are unlimited and can be combined with any photograph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from deep_image_compositing.options import check_choice, check_range

Plane = NDArray[np.float32]

OVERSAMPLING = 2
"""Supersampling factor along each side."""


@dataclass(frozen=True)
class _Shape:
    """A subject with a plain outline, in supersampled pixels."""

    distance: Plane  # (N, N), approximate distance from the outline in pixels, negative inside
    normal: Plane  # (N, N), direction in radians in which the distance grows

    @property
    def side(self) -> int:
        return len(self.distance)

    @property
    def solid(self) -> Image.Image:
        """The subject without any fine structure, as a mask (L)."""
        return Image.fromarray((255 * (self.distance < 0)).astype(np.uint8))


def draw_alpha(rng: np.random.Generator, size: int, kind: str | None = None) -> Image.Image:
    """Draw the alpha (L, 255 = opaque) of a subject whose outline crosses the picture.

    The picture is ``size`` x ``size``, at least 8 x 8. ``kind`` is a key of ``KINDS``, by default
    a random one. ``UsageError`` for a smaller size or an unknown kind.
    """
    check_range("size", size, 8, math.inf)
    if kind is None:
        kind = str(rng.choice(list(KINDS), p=[share for _, share in KINDS.values()]))
    check_choice("kind", kind, list(KINDS))
    picture = KINDS[kind][0](rng, _shape(rng, size * OVERSAMPLING))
    blur = float(rng.choice([0.0, 0.4, 0.8], p=[0.4, 0.4, 0.2]))
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(blur * OVERSAMPLING))
    return picture.resize((size, size), Image.Resampling.BOX)


def _noise(rng: np.random.Generator, side: int, cells: int) -> Plane:
    """Smooth noise (side, side), roughly in [-1, 1], with cells of ``side / cells`` pixels."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32))
    box = (1, 1, cells + 1, cells + 1)
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC, box), np.float32)


def _shape(rng: np.random.Generator, side: int) -> _Shape:
    """A random subject: it fills about half of the picture, or rises into it as a bump."""
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
    """Draw the subject with strands that start within ``depth`` pixels inside its outline."""
    near = np.argwhere((shape.distance < 0) & (shape.distance > -depth))
    layers = [shape.solid]
    if not len(near):
        return layers[0]
    bends = [_noise(rng, shape.side, cells) for cells in (3, 9)]
    steps = max(3, int(length / (3 * OVERSAMPLING)))
    # One layer for each opacity; where strands cross, the more opaque one wins.
    for opacity in (255, int(rng.integers(150, 230)), int(rng.integers(60, 140))):
        layer = Image.new("L", (shape.side, shape.side))
        draw = ImageDraw.Draw(layer)
        for row, column in near[rng.integers(0, len(near), number // 3)]:
            direction = shape.normal[row, column] + lean + rng.normal(0, 0.25)
            turn = rng.normal(0, curl) / steps
            stride = length * rng.uniform(0.3, 1.0) / steps
            thickness = max(1, round(width * rng.uniform(0.4, 1.0)))
            x, y = float(column), float(row)
            points = [(x, y)]
            for _ in range(steps):
                r, c = (min(max(int(v), 0), shape.side - 1) for v in (y, x))
                heading = direction + 0.8 * bends[0][r, c] + 0.4 * bends[1][r, c]
                x, y = x + stride * np.cos(heading), y + stride * np.sin(heading)
                direction += turn
                points.append((x, y))
            cut = 1 + 2 * len(points) // 3
            draw.line(points[:cut], fill=opacity, width=thickness, joint="curve")
            draw.line(points[cut - 1 :], fill=opacity, width=max(1, thickness // 2))
        layers.append(layer)
    return functools.reduce(ImageChops.lighter, layers)


def _hair(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """Long strands, combed in one direction, with a few strays."""
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
    """Leaves on both sides of the outline, with gaps between them."""
    reach = OVERSAMPLING * rng.uniform(8, 40)
    picture = Image.fromarray((255 * (shape.distance < -reach / 2)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    near = np.argwhere(np.abs(shape.distance) < reach)
    if not len(near):
        return picture
    size = OVERSAMPLING * rng.uniform(2, 9)
    lean = rng.uniform(0, np.pi)
    for row, column in near[rng.integers(0, len(near), int(rng.integers(80, 500)))]:
        angle, length = lean + rng.normal(0, 0.8), size * rng.uniform(0.4, 1.3)
        width = length * rng.uniform(0.15, 0.45)
        phase = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        u, v = length * np.cos(phase), width * np.sin(phase) * np.abs(np.sin(phase)) ** 0.3
        x = column + u * np.cos(angle) - v * np.sin(angle)
        y = row + u * np.sin(angle) + v * np.cos(angle)
        draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
    return picture


def _lace(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """A border with regular holes: lace, knitting, nets, fences."""
    y, x = np.mgrid[: shape.side, : shape.side].astype(np.float32)
    angle, pitch = rng.uniform(0, np.pi), OVERSAMPLING * rng.uniform(4, 14)
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / pitch)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / pitch) * rng.uniform(0.6, 1.4)
    warp = 2 * _noise(rng, shape.side, 4)
    pattern = np.cos(u + warp) * np.cos(v + warp)
    holes = np.clip((pattern - rng.uniform(-0.4, 0.6)) * 4, 0, 1)
    border = np.clip((shape.distance + OVERSAMPLING * rng.uniform(10, 45)) / 4, 0, 1)
    hole_opacity = rng.choice([0.0, rng.uniform(0.1, 0.5)])
    alpha = (shape.distance < 0) * (1 - (1 - hole_opacity) * holes * border)
    return Image.fromarray((255 * alpha + 0.5).astype(np.uint8))


def _veil(rng: np.random.Generator, shape: _Shape) -> Image.Image:
    """A translucent border: glass, gauze, smoke, wings."""
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
    """An outline that is partly out of focus or blurred by motion."""
    sharp, radius = shape.solid, OVERSAMPLING * rng.uniform(1.5, 8)
    soft = sharp.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(radius / 2))
    blend = np.clip(0.5 + 0.8 * _noise(rng, shape.side, 3), 0, 1)
    return Image.composite(soft, sharp, Image.fromarray((255 * blend).astype(np.uint8)))


KINDS: dict[str, tuple[Callable[[np.random.Generator, _Shape], Image.Image], float]] = {
    "hair": (_hair, 0.34),
    "fur": (_fur, 0.24),
    "foliage": (_foliage, 0.12),
    "lace": (_lace, 0.06),
    "veil": (_veil, 0.1),
    "defocus": (_defocus, 0.14),
}
"""Kinds that ``draw_alpha`` draws, with their probabilities."""
