"""Where training crops lie, and cutting them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

LEAST = 0.7
"""Width of the smallest crop of a matte, relative to the size at which it is used."""

Pixels = NDArray[np.uint8]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def subject_box(label: Image.Image) -> Box:
    """Bounding box of the label's subject; the whole picture when it is empty."""
    pixels = np.asarray(label)
    columns, rows = np.flatnonzero(pixels.max(0) > 127), np.flatnonzero(pixels.max(1) > 127)
    if not len(rows):
        return 0, 0, label.width, label.height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def whole_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """A large crop that keeps most of the subject: anything from the subject to everything."""
    width, height = size
    keep = rng.uniform(0, 1, 4) ** 1.5  # leans towards the whole picture
    slack = rng.uniform(-0.08, 0.08, 4) * np.tile((box[2] - box[0], box[3] - box[1]), 2)
    left = max(0.0, (box[0] - slack[0]) * keep[0])
    top = max(0.0, (box[1] - slack[1]) * keep[1])
    right = min(width, width - (width - box[2] - slack[2]) * keep[2])
    bottom = min(height, height - (height - box[3] - slack[3]) * keep[3])
    return left, top, max(right, left + 8), max(bottom, top + 8)


def close_up_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """A part of the subject, 0.45 to 0.95 of it wide and high, with a little around it."""
    width, height = size
    seen = rng.uniform(0.45, 0.95, 2) * (box[2] - box[0], box[3] - box[1])
    left = rng.uniform(box[0] - 0.1 * seen[0], box[2] - 0.9 * seen[0])
    top = rng.uniform(box[1] - 0.1 * seen[1], box[3] - 0.9 * seen[1])
    right, bottom = min(width, left + seen[0]), min(height, top + seen[1])
    left, top = max(0.0, left), max(0.0, top)
    return left, top, max(right, left + 8), max(bottom, top + 8)


def upper_body_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """Head and shoulders to half-length of a standing figure, roughly as portraits are framed."""
    width, height = size
    figure = box[3] - box[1]
    seen = figure * rng.uniform(0.2, 0.6)
    headroom = seen * rng.uniform(0.05, 0.45)
    side = (seen + headroom) * rng.uniform(0.6, 1.4)
    centre = (box[0] + box[2]) / 2 + 0.15 * rng.uniform(-1, 1) * side
    left, top = max(0.0, centre - side / 2), max(0.0, box[1] - headroom)
    return left, top, min(width, max(centre + side / 2, left + 8)), min(height, box[1] + seen)


def local_crop(
    label: Image.Image, rng: np.random.Generator, low: float = 0.15, high: float = 0.6
) -> Box:
    """A square around a point of the outline, ``low`` to ``high`` of the long side wide."""
    width, height = label.size
    point = outline_point(np.asarray(label), rng)
    side = max(width, height) * np.exp(rng.uniform(np.log(low), np.log(high)))
    side = float(min(side, width, height))
    shift = rng.uniform(-0.35, 0.35, 2) * side
    left = float(np.clip(point[0] + shift[0] - side / 2, 0, width - side))
    top = float(np.clip(point[1] + shift[1] - side / 2, 0, height - side))
    return left, top, left + side, top + side


def outline_point(label: Pixels, rng: np.random.Generator) -> tuple[int, int]:
    """A random (x, y) on the label's outline or soft rim; anywhere when it has none."""
    coarse = label[::4, ::4].astype(np.int16)
    edge = (coarse > 12) & (coarse < 243)
    edge[:, 1:] |= np.abs(np.diff(coarse, axis=1)) > 60
    edge[1:] |= np.abs(np.diff(coarse, axis=0)) > 60
    found = np.flatnonzero(edge)
    if found.size == 0:
        return int(rng.integers(label.shape[1])), int(rng.integers(label.shape[0]))
    y, x = divmod(int(rng.choice(found)), edge.shape[1])
    return x * 4, y * 4


def any_crop(
    size: tuple[int, int], rng: np.random.Generator, low: float = 0.4, aspect: float = 1.0
) -> Box:
    """A box of ``aspect`` (width / height), at least ``low`` of the largest one, anywhere."""
    width = min(size[0], size[1] * aspect) * rng.uniform(low, 1.0)
    height = width / aspect
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return left, top, left + width, min(top + height, size[1])


def union(one: Box, other: Box) -> Box:
    """The smallest box that holds both."""
    left, top = min(one[0], other[0]), min(one[1], other[1])
    return left, top, max(one[2], other[2]), max(one[3], other[3])


def carry(box: Box, source: Box, target: Box) -> Box:
    """Where in ``target`` that part lies which ``box`` is of ``source``."""
    x = (target[2] - target[0]) / (source[2] - source[0])
    y = (target[3] - target[1]) / (source[3] - source[1])
    return (
        target[0] + x * (box[0] - source[0]),
        target[1] + y * (box[1] - source[1]),
        target[0] + x * (box[2] - source[0]),
        target[1] + y * (box[3] - source[1]),
    )


def crop(
    image: Image.Image, box: Box, size: int, whole: tuple[int, int] | None = None
) -> Image.Image:
    """The crop ``box`` of ``image`` at ``size`` x ``size``, antialiased.

    The box is in pixels of a picture of size ``whole``, where ``image`` was decoded smaller.
    """
    if whole is not None and whole != image.size:
        x, y = _reduction(image.size, whole)
        box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    # Pillow takes no box that is outside, be it by the rounding of a float.
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    box = (left, top, min(box[2], image.width), min(box[3], image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def planes(image: Image.Image, mirrored: bool = False) -> Tensor:
    """A picture as an 8-bit tensor (C, H, W), left for right where ``mirrored``."""
    step = -1 if mirrored else 1
    # Band by band takes half as long as to transpose all of the pixels.
    return torch.from_numpy(np.stack([np.asarray(band)[:, ::step] for band in image.split()]))


def cut(
    picture: Image.Image, box: Box, size: int, mirrored: bool, whole: tuple[int, int] | None = None
) -> Tensor:
    """A ``crop`` as 8-bit ``planes`` (C, size, size)."""
    return planes(crop(picture, box, size, whole), mirrored)


def _reduction(size: tuple[int, int], whole: tuple[int, int]) -> tuple[float, float]:
    """By how much a picture of ``whole`` was decoded smaller, along x and y."""
    # JPEG is decoded at exactly 1/2, 1/4 or 1/8 and its size rounded up, so that the last pixels
    # show less than the others: the ratio of the sizes would shift the crop against its mask.
    for factor in (2, 4, 8):
        if size == (-(-whole[0] // factor), -(-whole[1] // factor)):
            return 1 / factor, 1 / factor
    return size[0] / whole[0], size[1] / whole[1]


def outline_crop(rng: np.random.Generator, label: Image.Image, size: int) -> tuple[Box, bool]:
    """A square at the outline of a matte, magnified little if it can be; whether to mirror it."""
    short, long = min(label.size), max(label.size)
    low = min(short / long, size * LEAST / long)
    box = local_crop(label, rng, low, min(short / long, max(low, 3 * low)))
    return box, bool(rng.random() < 0.5)
