"""Synthetic photographs and mattes made of multi-scale noise, for benchmarks and ``evaluate``.

They cost as much to decode as real ones: about as many bits per pixel as a photograph's JPEG.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

QUALITY = 90  # JPEG quality, with 4:2:0 chroma subsampling, as is common in cameras and on the web
Sides = tuple[int, int]  # range of the long side of generated pictures, in pixels


def photograph(rng: np.random.Generator, sides: Sides) -> Image.Image:
    """An RGB picture whose long side is drawn from ``sides``."""
    long = int(rng.integers(sides[0], sides[1] + 1))
    short = int(long * rng.uniform(0.65, 1))
    width, height = (long, short) if rng.random() < 0.6 else (short, long)
    gray, tint = _noise(rng, (width, height), 0.72), _noise(rng, (width, height), 0.4, 3)
    pixels = (128 + 200 * gray[..., None] + 120 * tint).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for _ in range(width * height // 6000):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        dx, dy = rng.normal(0, 12, 2)
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw.line((x, y, x + dx, y + dy), fill=color, width=int(rng.integers(1, 3)))
    return picture


def subject(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A soft, ragged mask (L, 255 = subject) of a shape near the centre."""
    width, height = size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    centre, radius = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.4, 0.7)
    distance = np.hypot(x - centre[0], y - centre[1]) + 0.3 * _noise(rng, size, 0.5)
    alpha = ((radius - distance) * min(size) / 8 + 0.5).clip(0, 1)
    return Image.fromarray((255 * alpha).round().astype(np.uint8))


def matte(rng: np.random.Generator, sides: Sides) -> Image.Image:
    """A cut-out (RGBA, straight colour): a ragged shape with strands around it."""
    picture = photograph(rng, sides)
    width, height = picture.size
    shape = subject(rng, picture.size).resize((4 * width, 4 * height))
    middle = [side.mean() for side in np.nonzero(np.asarray(shape) > 127)]
    draw = ImageDraw.Draw(shape)
    for angle in rng.uniform(0, 2 * np.pi, 60):
        turns = angle + rng.normal(0, 0.05, 8).cumsum()
        reach = np.linspace(0.1, rng.uniform(0.3, 0.45), 8) * min(shape.size)
        x, y = middle[1] + reach * np.cos(turns), middle[0] + reach * np.sin(turns)
        draw.line([*zip(x, y, strict=True)], fill=255, width=int(rng.integers(2, 7)))
    picture.putalpha(shape.resize(picture.size, Image.Resampling.BOX))
    return picture


def _noise(
    rng: np.random.Generator, size: tuple[int, int], persistence: float, channels: int = 0
) -> NDArray[np.float32]:
    """Noise (H, W), or (H, W, channels); each octave is ``persistence`` times the coarser one."""
    planes = []
    for _ in range(max(1, channels)):
        total = np.zeros((size[1], size[0]), np.float32)
        side, weight, weights = 3, 1.0, 0.0
        while side < 2 * max(size):
            cells = (min(side, size[0]), min(side, size[1]))
            grid = Image.fromarray(rng.standard_normal(cells[::-1], dtype=np.float32))
            total += weight * np.asarray(grid.resize(size, Image.Resampling.BICUBIC))
            weights += weight
            side, weight = side * 2, weight * persistence
        planes.append(total / (2 * weights))
    return np.stack(planes, -1) if channels else planes[0]


def jpeg(picture: Image.Image) -> bytes:
    """Encode as JPEG."""
    return _encoded(picture, "JPEG", quality=QUALITY)


def png(picture: Image.Image) -> bytes:
    """Encode as PNG."""
    return _encoded(picture, "PNG")


def _encoded(picture: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()
