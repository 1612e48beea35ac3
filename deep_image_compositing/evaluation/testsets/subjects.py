"""What ``syntest`` is made of: subjects and backgrounds that are read, reduced and blended."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deep_image_compositing import noise
from deep_image_compositing.data import folders
from deep_image_compositing.data.items import FileItem, Item, ShardItem, Source
from deep_image_compositing.data.mattes import estimate_color
from deep_image_compositing.data.shards import Record
from deep_image_compositing.evaluation.testsets.base import naming, planes
from deep_image_compositing.functional.resize import fit_long_side

COLOR_SIDE = 2000
"""Longest side in pixels at which a subject's colour is estimated."""

MADE_SIDE = 320
"""Long side in pixels of a made set."""

MADE_NOTE = (
    "made of noise and shapes: the figures say that everything runs, not which method is good"
)

Pixels = NDArray[np.uint8]


class Input(NamedTuple):
    """A matte or a background that samples are made of."""

    name: str  # unique among those of its kind
    where: str  # the file, or the shard and the key in it
    open: Callable[[], Item]


@lru_cache(maxsize=2)
def read_subject(subject: Input, side: int) -> tuple[Tensor, Tensor]:
    """Straight colour (3, H, W) and alpha (1, H, W), uint8, at most ``side`` pixels long."""
    with naming(subject.where):
        item = subject.open()
        label = item.label()
        if isinstance(item, FileItem):
            picture, straight = folders.read_pair(item.pair)[0], item.pair.label is None
        else:
            assert isinstance(item, ShardItem)
            fields = ("foreground.png", "foreground.jpg")
            picture = item.picture(*fields, "image.jpg").convert("RGB")
            straight = any(field in item.record.fields for field in fields)
        limit = fit_long_side(label.height, label.width, COLOR_SIDE)
        if (label.height, label.width) != limit and not straight:
            picture, label = (x.resize(limit[::-1], Image.Resampling.BOX) for x in (picture, label))
        color = picture if straight else estimate_color(picture, label)
    size = fit_long_side(label.height, label.width, side)
    reduced, alpha = reduce_matte(np.asarray(color), np.asarray(label), size)
    return planes(reduced), planes(alpha)


def read_scene(scene: Input) -> Tensor:
    """A background (3, H, W), uint8."""
    with naming(scene.where):
        return planes(np.asarray(scene.open().image()))


def reduce_matte(color: Pixels, alpha: Pixels, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """A matte (H, W, 3) and (H, W) at a smaller (height, width), rounded to 8 bits.

    Each pixel is the mean over its area, of colour, straight, weighted by opacity; colour is 0
    where alpha is.
    """
    if alpha.shape != tuple(size):
        opacity = alpha.astype(np.float32) / 255
        small = _area_mean(opacity, size)
        sums = [_area_mean(opacity * color[..., i], size) for i in range(3)]
        straight = np.stack(sums, -1) / np.maximum(small, 1e-6)[..., None]
        color = (straight.clip(0, 255) + 0.5).astype(np.uint8)
        alpha = (small.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.where(alpha[..., None] > 0, color, np.uint8(0)), alpha


def _area_mean(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


def blend(color: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """``αF + (1 − α)B`` of 8-bit pictures (C, H, W), in integers, to the nearest level."""
    opacity = alpha.to(torch.int32)
    # 255 is odd: no value lies half-way between two levels.
    mixed = opacity * color + (255 - opacity) * background
    return ((mixed + 127) // 255).to(torch.uint8)


def made_inputs(seed: int) -> tuple[list[Input], list[Input]]:
    """Four subjects, ragged shapes with strands around, and six backgrounds, all of noise."""
    mattes = [(f"made-{n + 1}", partial(_made, seed, 1, n)) for n in range(4)]
    scenes = [(f"noise-{n + 1}", partial(_made, seed, 2, n)) for n in range(6)]
    subjects, backgrounds = (
        [Input(name, name, make) for name, make in found] for found in (mattes, scenes)
    )
    return subjects, backgrounds


def _made(seed: int, kind: int, number: int) -> Item:
    rng = np.random.default_rng([seed, kind, number])
    side = (MADE_SIDE, MADE_SIDE)
    if kind == 1:
        fields = {"foreground.png": noise.png(noise.matte(rng, side))}
    else:
        fields = {"image.jpg": noise.jpeg(noise.photograph(rng, side))}
    return ShardItem(Source("made"), Record(f"made-{number + 1}", fields))
