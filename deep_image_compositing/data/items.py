"""Items: samples of training data that decode their pictures on demand; datasets return them."""

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
    """A source of training data, and how it is used.

    Attributes:
        path: a folder of shards with its ``index.json``; shards by path or URL, with braces and
            globs (``mine/{000..009}.tar``); or a plain folder: ``NAME.jpg`` beside
            ``NAME.mask.png`` or ``NAME.alpha.png``, ``images/NAME.*`` and ``masks/NAME.*`` or
            ``alphas/NAME.*``, RGBA cut-outs, or (for backgrounds) any images; for harmonizers also
            ``composites/NAME.*`` beside these, or iHarmony4 as published.
        weight: share of the samples, relative to the other sources; 0 for none.
        upper_body: share of crops that show only the upper part of a standing figure, in [0, 1].
        paste: share of samples whose subject is pasted on another background, in [0, 1].
        distrust: width of the band around the outline that the loss ignores, for coarse
            annotations, in pixels at a size of 320.
        hold_out: share of a plain folder's photographs held out for validation, in [0, 1), chosen
            by the hash of their names; a larger share includes a smaller one. Shards have their
            own splits.
        sequences: the photographs in a plain folder are video frames named ``NAME_00017``, and
            those of one video are held out together.
        doubt: skip photographs of a plain folder whose mask has this much doubt or more in its
            ``labels.tsv``; None to use all.

    Raises:
        UsageError: for a share out of range; a weight or distrust below 0.
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
    """One sample."""

    source: Source
    name = ""  # for messages
    has_scene = True  # the photograph shows a scene around the subject; False for cut-outs

    @abstractmethod
    def size(self) -> folders.Size:
        """(width, height) of the whole photograph."""

    @abstractmethod
    def image(self, scale: float = 1.0) -> Image.Image:
        """The photograph (RGB, upright), decoded at no less than ``scale`` of its size."""

    @abstractmethod
    def label(self) -> Image.Image:
        """The mask or alpha (L, 255 = subject), at the size of the whole photograph."""

    def composite(self, scale: float = 1.0) -> Image.Image | None:
        """The photograph with its subject recoloured (RGB), decoded as ``image``; None without."""
        return None

    @abstractmethod
    def color(self, label: Image.Image, box: crops.Box, size: int) -> Image.Image:
        """Straight colour (RGB) of the subject in the crop ``box`` at ``size`` x ``size``.

        Estimated from the photograph and its alpha ``label`` if it is not stored.
        """


@dataclass(eq=False)
class FileItem(Item):
    """A sample in a plain folder; decoded files are cached in ``folders.DECODED``."""

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
        composite = folders.read_photograph(self.pair.composite)[0]
        folders.check_composite(self.pair.composite, composite.size, self.size())
        return composite

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
        """Decode the first of the fields ``names`` that exists, at no less than ``scale``.

        JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if that suffices. ``DataError`` if
        no field exists, or it cannot be decoded.
        """
        name = self._field(names)
        with self._decoding(name):
            data, draft = self.record.fields[name], None
            image = open_picture(data, name)
            if scale < 1:
                draft = math.ceil(image.width * scale), math.ceil(image.height * scale)
            checked = name in self.record.whole
            load_whole(image, None if checked else io.BytesIO(data), draft)
            self.record.whole.add(name)
        return image

    def _field(self, names: tuple[str, ...]) -> str:
        """The first of ``names`` that is a field of the sample."""
        for name in names:
            if name in self.record.fields:
                return name
        raise DataError(f"{self.name} holds none of {', '.join(names)}")

    @contextmanager
    def _decoding(self, field: str) -> Iterator[None]:
        """Turn any exception into a DataError: decoders raise many types for broken data."""
        try:
            yield
        except Exception as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):  # its text is only a buffer's address
                reason = "it is no image of a known format"
            raise DataError(f"{self.name}.{field} cannot be decoded: {reason}") from error


def estimate_color(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Estimate the straight colour of the subject of ``image`` (RGB) from ``alpha`` (L, same size).

    Uses the multi-level method (Germer et al., ICPR 2020) of pymatting if that is installed,
    otherwise blur fusion.
    """
    pixels, opacity = (to_tensor(np.asarray(picture))[None] for picture in (image, alpha))
    try:
        color = multilevel_foreground(pixels, opacity)
    except MissingExtraError:
        with torch.inference_mode():
            color, _ = blur_fusion_foreground(pixels, opacity)
    return Image.fromarray(to_uint8(color[0]))


def scene_crop(rng: np.random.Generator, item: Item, size: int, low: float) -> Tensor:
    """A random square crop (3, size, size), at least ``low`` of the photograph's short side wide.

    Half of the crops are mirrored.
    """
    full_size = item.size()
    box = crops.any_crop(full_size, rng, low)
    picture = item.image(size / (box[2] - box[0]))
    return crops.planes(crops.crop(picture, box, size, full_size), bool(rng.random() < 0.5))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert would always copy
