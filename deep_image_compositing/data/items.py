"""One sample of training data, read and decoded when and as far as it is needed.

Datasets hand items out; data modules crop them.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from deep_image_compositing.data import crops, folders
from deep_image_compositing.data.folders import HOLD_OUT, Pair
from deep_image_compositing.data.mattes import estimate_color, read_matte
from deep_image_compositing.data.memory import DECODED, picture_bytes
from deep_image_compositing.data.shards import Record
from deep_image_compositing.errors import DataError, ImageError, UsageError
from deep_image_compositing.images import open_picture, truncation

UNREADABLE = (DataError, ImageError, OSError)
"""What reading a damaged sample or shard may raise. Never a mistake in a call or in a program."""

_PHOTOGRAPHS = ("image.jpg", "foreground.jpg", "foreground.png")


@dataclass
class Source:
    """Where training data lies, and how it is used.

    Attributes:
        path: a folder of shards with its ``index.json``; shards by path or URL, with braces and
            globs (``mine/{000..009}.tar``); or a plain folder: ``NAME.jpg`` beside
            ``NAME.mask.png`` or ``NAME.alpha.png``, ``images/NAME.*`` and ``masks/NAME.*`` or
            ``alphas/NAME.*``, RGBA cut-outs, or (for backgrounds) any images.
        weight: share of the samples, relative to the other sources; 0 for none.
        upper_body: share of crops that show only the upper part of a standing figure.
        paste: share of samples whose subject is pasted on another background.
        distrust: pixels at 320 around the outline that the loss ignores, for coarse annotations.
        hold_out: share of a plain folder's photographs that are kept for validation, chosen by the
            hash of their names; a larger share holds all that a smaller one does. Shards carry
            their own split.
        sequences: the photographs in a plain folder are frames of videos, named ``NAME_00017``:
            those of one video are held out together.
        doubt: photographs of a plain folder whose mask is as doubtful as that or more, as its
            ``labels.tsv`` says, are not used; None to use all.

    Raises:
        UsageError: for a share outside [0, 1], or [0, 1) for ``hold_out``; a weight or distrust
            below 0.
    """

    path: str
    weight: float = 1.0
    upper_body: float = 0.0
    paste: float = 0.3
    distrust: float = 0.0
    hold_out: float = HOLD_OUT
    sequences: bool = False
    doubt: float | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "distrust"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:  # written so that NaN fails too
                raise UsageError(f"{name} is a number of at least 0, got {value}")
        for name in ("upper_body", "paste"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is a share in [0, 1], got {share}")
        if not 0 <= self.hold_out < 1:
            raise UsageError(f"hold_out is a share in [0, 1), got {self.hold_out}")


@dataclass(eq=False)
class Item(ABC):
    """A sample that can be looked at.

    Attributes:
        source: where it comes from.
    """

    source: Source

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole photograph."""

    @abstractmethod
    def image(self, scale: float = 1.0) -> Image.Image:
        """The photograph (RGB, upright), decoded at no less than ``scale`` of its size."""

    @abstractmethod
    def label(self) -> Image.Image:
        """Where the subject is (L, 255 = subject), at the size of the whole photograph."""

    @abstractmethod
    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        """Straight colour (RGB) of the subject in the crop ``box`` at ``size`` x ``size``.

        Where the source has none it is estimated from the photograph and ``label``, its opacity.
        """


@dataclass(eq=False)
class FileItem(Item):
    """A sample in a plain folder; files read lately stay decoded."""

    pair: Pair

    @property
    def name(self) -> str:
        return str(self.pair.image)

    def size(self) -> tuple[int, int]:
        return self.image().size

    def image(self, scale: float = 1.0) -> Image.Image:
        return folders.read_rgb(self.pair.image, cutout=self.pair.label is None)

    def label(self) -> Image.Image:
        return folders.read_pair(self.pair)[1]

    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        return crops.crop(_read_color(self.pair), box, size)


def _read_color(pair: Pair) -> Image.Image:
    """Straight colour (RGB) of a matte; those read lately stay in memory."""
    if pair.label is None:
        return folders.read_pair(pair)[0]
    return DECODED.get(("color", pair), lambda: read_matte(pair).color, picture_bytes)


@dataclass(eq=False)
class ShardItem(Item):
    """A sample of a shard."""

    record: Record

    @property
    def name(self) -> str:
        return self.record.name

    def size(self) -> tuple[int, int]:
        name = self._field(_PHOTOGRAPHS)
        with (
            _decoding(f"{self.name}.{name}"),
            open_picture(self.record.fields[name], name) as image,
        ):
            return image.size

    def image(self, scale: float = 1.0) -> Image.Image:
        return _rgb(self.picture(*_PHOTOGRAPHS, scale=scale))

    def label(self) -> Image.Image:
        picture = self.picture("mask.png", "alpha.png", "foreground.png")
        return picture.getchannel("A") if "A" in picture.getbands() else _gray(picture)

    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        names = ("foreground.jpg", "foreground.png", "image.jpg")
        picture = _rgb(self.picture(*names, scale=size / (box[2] - box[0])))
        color = crops.crop(picture, box, size, whole=label.size)
        if {"foreground.jpg", "foreground.png"} & self.record.fields.keys():
            return color
        return estimate_color(color, crops.crop(label, box, size))

    def picture(self, *names: str, scale: float = 1.0) -> Image.Image:
        """The first field among ``names`` that there is, decoded at no less than ``scale``.

        JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that suffices, which costs that much
        less.

        Raises:
            DataError: when there is none of them, or it cannot be decoded.
        """
        name = self._field(names)
        with _decoding(f"{self.name}.{name}"):
            stored, draft = self.record.fields[name], None
            image, checked = open_picture(stored, name), name in self.record.whole
            if not checked and truncation.cannot_be_whole(io.BytesIO(stored), image.format):
                raise DataError("its data end early")
            if scale < 1 and image.format == "JPEG":
                width, height = image.size
                draft = int(np.ceil(width * scale)), int(np.ceil(height * scale))
                image.draft("RGB", draft)
            image.load()
            if not checked and truncation.ends_early(io.BytesIO(stored), image, draft, _reopen):
                raise DataError("its data end early")
            self.record.whole.add(name)
        return image

    def _field(self, names: tuple[str, ...]) -> str:
        """The first of ``names`` that the sample has."""
        name = next((name for name in names if name in self.record.fields), None)
        if name is None:
            raise DataError(f"{self.name} holds none of {', '.join(names)}")
        return name


def scene_crop(rng: np.random.Generator, item: Item, size: int, low: float) -> Tensor:
    """A square crop (3, size, size) of a photograph, at least ``low`` of its short side wide."""
    whole = item.size()
    box = crops.any_crop(whole, rng, low)
    picture = item.image(size / (box[2] - box[0]))
    return crops.planes(crops.crop(picture, box, size, bool(rng.random() < 0.5), whole))


def _reopen(file: BinaryIO) -> Image.Image:
    return open_picture(file.read())


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever decoding raises is a DataError about ``name``: broken data makes nearly anything."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text is the address of a buffer
            reason = "it is no image of a known format"
        raise DataError(f"{name} cannot be decoded: {reason}") from error


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else image.convert("L")
