"""Training data made of noise, as costly to decode as photographs; the benchmarks use it.

A picture is noise of every scale, coarse ones stronger, as in photographs, with small shapes that
have sharp edges. At JPEG quality 90 it takes about as many bits a pixel as a photograph does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deep_image_compositing.data.shards import Index, ShardWriter

QUALITY = 90
"""JPEG quality, with halved chroma, as cameras and the web have it."""

Sides = tuple[int, int]
"""Shortest and longest long side of made pictures, in pixels."""


def photograph(rng: np.random.Generator, sides: Sides) -> Image.Image:
    """A picture (RGB) whose long side is drawn from ``sides``."""
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
    """The soft, ragged mask (L, 255 = subject) of something in the middle of a picture."""
    width, height = size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    centre, radius = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.4, 0.7)
    distance = np.hypot(x - centre[0], y - centre[1]) + 0.3 * _noise(rng, size, 0.5)
    alpha = ((radius - distance) * min(size) / 8 + 0.5).clip(0, 1)
    return Image.fromarray((255 * alpha).round().astype(np.uint8))


def _noise(
    rng: np.random.Generator, size: tuple[int, int], persistence: float, channels: int = 0
) -> NDArray[np.float32]:
    """(H, W) or (H, W, channels) of noise of all scales; each is ``persistence`` of the coarser."""
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
    """The picture as a JPEG file."""
    return _encoded(picture, "JPEG", quality=QUALITY)


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    return _encoded(picture, "PNG")


def _encoded(picture: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _segmentation(rng: np.random.Generator, sides: Sides) -> dict[str, bytes]:
    picture = photograph(rng, sides)
    return {"image.jpg": jpeg(picture), "mask.png": png(subject(rng, picture.size))}


def _matte(rng: np.random.Generator, sides: Sides) -> dict[str, bytes]:
    picture = photograph(rng, sides)
    return {"foreground.jpg": jpeg(picture), "alpha.png": png(subject(rng, picture.size))}


def _background(rng: np.random.Generator, sides: Sides) -> dict[str, bytes]:
    return {"image.jpg": jpeg(photograph(rng, sides))}


_MAKERS: Mapping[str, Callable[[np.random.Generator, Sides], dict[str, bytes]]] = {
    "segmentation": _segmentation,
    "mattes": _matte,
    "backgrounds": _background,
}

KINDS = tuple(_MAKERS)
"""Kinds of samples that can be made."""


def samples(kind: str, count: int, sides: Sides) -> list[tuple[str, dict[str, bytes]]]:
    """Keys and fields of ``count`` samples of a kind, always the same."""
    rng = np.random.default_rng([KINDS.index(kind), count, *sides])
    return [(f"{kind}-{number:05d}", _MAKERS[kind](rng, sides)) for number in range(count)]


def write_shards(
    folder: Path, kind: str, made: Sequence[tuple[str, dict[str, bytes]]], shards: int = 4
) -> Path:
    """Write samples as shards with their index into ``folder``, which is made; returns it."""
    folder.mkdir(parents=True)
    entries = []
    for number in range(shards):
        writer = ShardWriter(folder / f"{number:03d}.tar")
        with writer:
            for key, fields in made[
                number * len(made) // shards : (number + 1) * len(made) // shards
            ]:
                writer.write(key, fields)
        entries.append(writer.entry())
    Index(kind, {"train": entries}, {"source": "made of noise"}).write(folder)
    return folder
