"""One sample of training data, decoded when and as far as it is needed; datasets hand items out."""

from __future__ import annotations

import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from deep_image_compositing.data import crops, folders
from deep_image_compositing.data.shards import Record
from deep_image_compositing.errors import DataError, MissingExtraError, UsageError
from deep_image_compositing.functional.foreground import (
    blur_fusion_foreground,
    multilevel_foreground,
)
from deep_image_compositing.images import open_picture, to_tensor, to_uint8
from deep_image_compositing.images.decoding import load_whole
from deep_image_compositing.options import check_range

_COLORS = ("foreground.jpg", "foreground.png")
_PHOTOGRAPHS = ("image.jpg", *_COLORS)
_LABELS = ("mask.png", "alpha.png", "foreground.png")


@dataclass
class Source:
    """Where training data lies, and how it is used.

    Attributes:
        path: a folder of shards with its ``index.json``; shards by path or URL, with braces and
            globs (``mine/{000..009}.tar``); or a plain folder: ``NAME.jpg`` beside
            ``NAME.mask.png`` or ``NAME.alpha.png``, ``images/NAME.*`` and ``masks/NAME.*`` or
            ``alphas/NAME.*``, RGBA cut-outs, or (for backgrounds) any images; for harmonizers also
            ``composites/NAME.*`` beside these, or iHarmony4 as published.
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
    hold_out: float = folders.HOLD_OUT
    sequences: bool = False
    doubt: float | None = None

    def __post_init__(self) -> None:
        parts = os.fspath(self.path).split("::")
        self.path = "::".join(map(os.path.expanduser, parts))
        for name in ("weight", "distrust"):
            check_range(name, getattr(self, name), 0, math.inf)
        check_shares(upper_body=self.upper_body, paste=self.paste)
        if not 0 <= self.hold_out < 1:
            raise UsageError(f"hold_out is a share in [0, 1), got {self.hold_out}")


def check_shares(**shares: float) -> None:
    """Raise ``UsageError`` for an option that is not in [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UsageError(f"{name} is a share in [0, 1], got {share}")


@dataclass(eq=False)
class Item(ABC):
    """A sample that can be looked at."""

    source: Source
    name = ""  # what messages call it
    has_scene = True  # the photograph shows more than its subject, as a cut-out does not

    @abstractmethod
    def size(self) -> folders.Size:
        """(width, height) of the whole photograph."""

    @abstractmethod
    def image(self, scale: float = 1.0) -> Image.Image:
        """The photograph (RGB, upright), decoded at no less than ``scale`` of its size."""

    @abstractmethod
    def label(self) -> Image.Image:
        """Where the subject is (L, 255 = subject), at the size of the whole photograph."""

    def composite(self, scale: float = 1.0) -> Image.Image | None:
        """The photograph with another colour of its subject (RGB), as ``image``; if it has one."""
        return None

    @abstractmethod
    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        """Straight colour (RGB) of the subject in the crop ``box`` at ``size`` x ``size``.

        Where the source has none it is estimated from the photograph and ``label``, its opacity.
        """


@dataclass(eq=False)
class FileItem(Item):
    """A sample in a plain folder; files read lately stay decoded."""

    pair: folders.Pair

    def __post_init__(self) -> None:
        self.name = str(self.pair.image)
        self.has_scene = self.pair.label is not None

    def size(self) -> folders.Size:
        return self.image().size

    def image(self, scale: float = 1.0) -> Image.Image:
        return folders.read_photograph(self.pair.image, cutout=self.pair.label is None)[0]

    def label(self) -> Image.Image:
        path = self.pair.label
        if path is not None:
            size = self.size()
            return folders.DECODED.get(
                ("label", path, size), lambda: folders.read_label(path, size)
            )
        _, *alpha = folders.read_photograph(self.pair.image, cutout=True)
        if not alpha:
            raise DataError(f"{self.name} is meant as a cut-out, but it is opaque everywhere")
        return alpha[0]

    def composite(self, scale: float = 1.0) -> Image.Image | None:
        if self.pair.composite is None:
            return None
        made = folders.read_photograph(self.pair.composite)[0]
        folders.check_composite(self.pair.composite, made.size, self.size())
        return made

    def straight(self) -> Image.Image:
        """Straight colour (RGB) of the whole subject."""
        if self.pair.label is None:
            return self.image()
        return folders.DECODED.get(
            ("color", self.pair), lambda: estimate_color(self.image(), self.label())
        )

    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        return crops.crop(self.straight(), box, size)


@dataclass(eq=False)
class ShardItem(Item):
    """A sample of a shard."""

    record: Record

    def __post_init__(self) -> None:
        self.name = self.record.name
        self.has_scene = "image.jpg" in self.record.fields

    def size(self) -> folders.Size:
        name = self._field(_PHOTOGRAPHS)
        with self._decoding(name), open_picture(self.record.fields[name], name) as image:
            return image.size

    def image(self, scale: float = 1.0) -> Image.Image:
        return _in_mode(self.picture(*_PHOTOGRAPHS, scale=scale), "RGB")

    def label(self) -> Image.Image:
        picture = self.picture(*_LABELS)
        return picture.getchannel("A") if "A" in picture.getbands() else _in_mode(picture, "L")

    def composite(self, scale: float = 1.0) -> Image.Image | None:
        if "composite.jpg" not in self.record.fields:
            return None
        return _in_mode(self.picture("composite.jpg", scale=scale), "RGB")

    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        picture = self.picture(*_COLORS, "image.jpg", scale=size / (box[2] - box[0]))
        color = crops.crop(_in_mode(picture, "RGB"), box, size, whole=label.size)
        if any(name in self.record.fields for name in _COLORS):
            return color
        return estimate_color(color, crops.crop(label, box, size))

    def picture(self, *names: str, scale: float = 1.0) -> Image.Image:
        """The first field among ``names`` that there is, decoded at no less than ``scale``.

        JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that suffices. ``DataError`` if there
        is none of them, or it cannot be decoded.
        """
        name = self._field(names)
        with self._decoding(name):
            stored, draft = self.record.fields[name], None
            image = open_picture(stored, name)
            if scale < 1:
                draft = math.ceil(image.width * scale), math.ceil(image.height * scale)
            checked = name in self.record.whole
            load_whole(image, None if checked else io.BytesIO(stored), draft)
            self.record.whole.add(name)
        return image

    def _field(self, names: tuple[str, ...]) -> str:
        """The first of ``names`` that the sample has."""
        for name in names:
            if name in self.record.fields:
                return name
        raise DataError(f"{self.name} holds none of {', '.join(names)}")

    @contextmanager
    def _decoding(self, field: str) -> Iterator[None]:
        """Whatever decoding raises is a DataError: broken data makes nearly anything."""
        try:
            yield
        except Exception as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):  # its text is the address of a buffer
                reason = "it is no image of a known format"
            raise DataError(f"{self.name}.{field} cannot be decoded: {reason}") from error


def estimate_color(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Straight colour of the subject of ``image`` under ``alpha``, both of one size.

    By the multi-level method (Germer et al., ICPR 2020) of pymatting, without it by blur fusion.
    """
    pixels, opacity = (to_tensor(np.asarray(picture))[None] for picture in (image, alpha))
    try:
        color = multilevel_foreground(pixels, opacity)
    except MissingExtraError:
        with torch.inference_mode():
            color, _ = blur_fusion_foreground(pixels, opacity)
    return Image.fromarray(to_uint8(color[0]))


def scene_crop(rng: np.random.Generator, item: Item, size: int, low: float) -> Tensor:
    """A square crop (3, size, size) of a photograph, at least ``low`` of its short side wide."""
    whole = item.size()
    box = crops.any_crop(whole, rng, low)
    picture = item.image(size / (box[2] - box[0]))
    return crops.planes(crops.crop(picture, box, size, whole), bool(rng.random() < 0.5))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert alone would copy
