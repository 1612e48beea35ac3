"""Choosing and cutting training crops."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MIN_SCALE = 0.7
"""Smallest width of a matte's crop, as a share of the size to which it is resized."""

Pixels = NDArray[np.uint8]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def subject_box(label: Image.Image) -> Box:
    """Bounding box of the label's subject; the whole picture when the label is empty."""
    pixels = np.asarray(label)
    columns, rows = np.flatnonzero(pixels.max(0) > 127), np.flatnonzero(pixels.max(1) > 127)
    if not len(rows):
        return 0, 0, label.width, label.height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def whole_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """A random crop between the subject's ``box``, give or take 8 %, and the whole picture."""
    width, height = size
    trim = rng.uniform(0, 1, 4) ** 1.5  # favours the whole picture
    slack = rng.uniform(-0.08, 0.08, 4) * np.tile((box[2] - box[0], box[3] - box[1]), 2)
    left = max(0.0, (box[0] - slack[0]) * trim[0])
    top = max(0.0, (box[1] - slack[1]) * trim[1])
    right = min(width, width - (width - box[2] - slack[2]) * trim[2])
    bottom = min(height, height - (height - box[3] - slack[3]) * trim[3])
    return left, top, max(right, left + 8), max(bottom, top + 8)


def close_up_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """A crop of 0.45 to 0.95 of the subject's width and height, up to a tenth of it outside."""
    width, height = size
    extent = rng.uniform(0.45, 0.95, 2) * (box[2] - box[0], box[3] - box[1])
    left = rng.uniform(box[0] - 0.1 * extent[0], box[2] - 0.9 * extent[0])
    top = rng.uniform(box[1] - 0.1 * extent[1], box[3] - 0.9 * extent[1])
    right, bottom = min(width, left + extent[0]), min(height, top + extent[1])
    left, top = max(0.0, left), max(0.0, top)
    return left, top, max(right, left + 8), max(bottom, top + 8)


def upper_body_crop(size: tuple[int, int], box: Box, rng: np.random.Generator) -> Box:
    """A portrait of a standing figure: from head and shoulders to half-length."""
    width, height = size
    visible = (box[3] - box[1]) * rng.uniform(0.2, 0.6)
    headroom = visible * rng.uniform(0.05, 0.45)
    side = (visible + headroom) * rng.uniform(0.6, 1.4)
    centre = (box[0] + box[2]) / 2 + 0.15 * rng.uniform(-1, 1) * side
    left, top = max(0.0, centre - side / 2), max(0.0, box[1] - headroom)
    return left, top, min(width, max(centre + side / 2, left + 8)), min(height, box[1] + visible)


def local_crop(
    label: Image.Image, rng: np.random.Generator, low: float = 0.15, high: float = 0.6
) -> Box:
    """A square near a point of the outline, of ``low`` to ``high`` of the picture's long side."""
    width, height = label.size
    point = outline_point(np.asarray(label), rng)
    side = max(width, height) * np.exp(rng.uniform(np.log(low), np.log(high)))
    side = float(min(side, width, height))
    shift = rng.uniform(-0.35, 0.35, 2) * side
    left = float(np.clip(point[0] + shift[0] - side / 2, 0, width - side))
    top = float(np.clip(point[1] + shift[1] - side / 2, 0, height - side))
    return left, top, left + side, top + side


def outline_point(label: Pixels, rng: np.random.Generator) -> tuple[int, int]:
    """A random (x, y) on the label's outline or soft rim; anywhere if there is none."""
    coarse = label[::4, ::4].astype(np.int16)
    edge = (coarse > 12) & (coarse < 243)
    edge[:, 1:] |= np.abs(np.diff(coarse, axis=1)) > 60
    edge[1:] |= np.abs(np.diff(coarse, axis=0)) > 60
    candidates = np.flatnonzero(edge)
    if candidates.size == 0:
        return int(rng.integers(label.shape[1])), int(rng.integers(label.shape[0]))
    y, x = divmod(int(rng.choice(candidates)), edge.shape[1])
    return x * 4, y * 4


def any_crop(
    size: tuple[int, int], rng: np.random.Generator, low: float = 0.4, aspect: float = 1.0
) -> Box:
    """A random box of ``aspect`` (width / height), at least ``low`` as wide as the largest."""
    width = min(size[0], size[1] * aspect) * rng.uniform(low, 1.0)
    height = width / aspect
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return left, top, left + width, min(top + height, size[1])


def union(a: Box, b: Box) -> Box:
    """The smallest box that contains both."""
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def map_box(box: Box, source: Box, target: Box) -> Box:
    """Map ``box`` by the scaling and translation that take ``source`` to ``target``."""
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
    """Cut ``box`` from ``image`` and resize it to ``size`` x ``size`` with antialiasing.

    If ``image`` was decoded at a reduced size, ``whole`` is the (width, height) to which ``box``
    refers.
    """
    if whole is not None and whole != image.size:
        x, y = _reduction(image.size, whole)
        box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    # Pillow rejects a box outside the image, even by a rounding error.
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    box = (left, top, min(box[2], image.width), min(box[3], image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def planes(image: Image.Image, mirrored: bool = False) -> Tensor:
    """An image as an 8-bit tensor (C, H, W), flipped horizontally if ``mirrored``."""
    step = -1 if mirrored else 1
    # Stacking the bands takes half as long as transposing all pixels.
    return torch.from_numpy(np.stack([np.asarray(band)[:, ::step] for band in image.split()]))


def cut(
    picture: Image.Image, box: Box, size: int, mirrored: bool, whole: tuple[int, int] | None = None
) -> Tensor:
    """``crop`` as an 8-bit tensor (C, size, size)."""
    return planes(crop(picture, box, size, whole), mirrored)


def _reduction(size: tuple[int, int], whole: tuple[int, int]) -> tuple[float, float]:
    """Scale along x and y at which a picture of size ``whole`` was decoded."""
    # JPEG is decoded at exactly 1/2, 1/4 or 1/8, and its size is rounded up. The ratio of the
    # sizes would shift the crop against its mask.
    for factor in (2, 4, 8):
        if size == (-(-whole[0] // factor), -(-whole[1] // factor)):
            return 1 / factor, 1 / factor
    return size[0] / whole[0], size[1] / whole[1]


def outline_crop(rng: np.random.Generator, label: Image.Image, size: int) -> tuple[Box, bool]:
    """A random square at the outline of a matte, and whether to mirror it.

    It is at least ``MIN_SCALE * size`` pixels wide, unless the matte is smaller.
    """
    short, long = min(label.size), max(label.size)
    low = min(short / long, size * MIN_SCALE / long)
    box = local_crop(label, rng, low, min(short / long, 3 * low))
    return box, bool(rng.random() < 0.5)
