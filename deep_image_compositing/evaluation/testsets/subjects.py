"""What ``syntest`` is made of: subjects and backgrounds that are read, reduced and blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

_MADE_SUBJECTS, _MADE_BACKGROUNDS = 4, 6
MADE_NOTE = (
    "made of noise and shapes: the figures say that everything runs, not which method is good"
)

Pixels = NDArray[np.uint8]


class Input(NamedTuple):
    """A matte or a background that samples are made of.

    Attributes:
        name: unique among those of its kind.
        where: the file, or the shard and the key in it.
        open: gives the item.
    """

    name: str
    where: str
    open: Callable[[], Item]


@lru_cache(maxsize=2)
def read_subject(subject: Input, side: int) -> tuple[Tensor, Tensor]:
    """Straight colour (3, H, W) and alpha (1, H, W), uint8, at most ``side`` pixels long."""
    with naming(subject.where):
        item = subject.open()
        label = item.label()
        picture, straight = _picture_of(item)
        limit = fit_long_side(label.height, label.width, COLOR_SIDE)
        if (label.height, label.width) != limit and not straight:
            picture, label = (x.resize(limit[::-1], Image.Resampling.BOX) for x in (picture, label))
        color = picture if straight else estimate_color(picture, label)
    size = fit_long_side(label.height, label.width, side)
    reduced, alpha = reduce_matte(np.asarray(color), np.asarray(label), size)
    return planes(reduced), planes(alpha)


def _picture_of(item: Item) -> tuple[Image.Image, bool]:
    """The whole picture that tells a subject's colour, and whether that is straight already."""
    if isinstance(item, FileItem):
        return folders.read_pair(item.pair)[0], item.pair.label is None
    assert isinstance(item, ShardItem)
    straight = ("foreground.png", "foreground.jpg")
    picture = item.picture(*straight, "image.jpg").convert("RGB")
    return picture, any(field in item.record.fields for field in straight)


def read_scene(scene: Input) -> Tensor:
    """A background (3, H, W), uint8."""
    with naming(scene.where):
        return planes(np.asarray(scene.open().image()))


def reduce_matte(color: Pixels, alpha: Pixels, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """A matte at a smaller size: means over the area of each pixel, colour weighted by opacity.

    Args:
        color: (H, W, 3), straight.
        alpha: (H, W).
        size: (height, width).

    Returns:
        Colour and alpha, rounded to 8 bits; colour is 0 where alpha is.
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
    """``αF + (1 − α)B`` of 8-bit pictures, rounded to the nearest level.

    Args:
        color: (3, H, W) uint8, straight.
        alpha: (1, H, W) uint8.
        background: (3, H, W) uint8.

    Returns:
        (3, H, W) uint8: in integers, the same everywhere.
    """
    opacity = alpha.to(torch.int32)
    # 255 is odd: no value lies half-way between two levels.
    mixed = opacity * color + (255 - opacity) * background
    return ((mixed + 127) // 255).to(torch.uint8)


# Without mattes


def made_inputs(seed: int) -> tuple[list[Input], list[Input]]:
    """Subjects and backgrounds made of noise."""

    def inputs(name: str, make: Callable[..., Item], count: int) -> Iterator[Input]:
        for n in range(count):
            yield Input(f"{name}-{n + 1}", f"{name}-{n + 1}", partial(make, seed, n))

    return (
        [*inputs("made", _made_matte, _MADE_SUBJECTS)],
        [*inputs("noise", _made_scene, _MADE_BACKGROUNDS)],
    )


def _made_matte(seed: int, number: int) -> Item:
    """A ragged shape with strands around it, and the colours of noise."""
    cutout = noise.matte(np.random.default_rng([seed, 1, number]), (MADE_SIDE, MADE_SIDE))
    return ShardItem(
        Source("made"), Record(f"made-{number + 1}", {"foreground.png": noise.png(cutout)})
    )


def _made_scene(seed: int, number: int) -> Item:
    rng = np.random.default_rng([seed, 2, number])
    fields = {"image.jpg": noise.jpeg(noise.photograph(rng, (MADE_SIDE, MADE_SIDE)))}
    return ShardItem(Source("made"), Record(f"noise-{number + 1}", fields))
