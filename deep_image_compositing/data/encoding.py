"""Encode the files of a data set as fields of samples; ``convert`` writes them into shards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from deep_image_compositing.data.folders import Pair, Size, check_composite, read_label
from deep_image_compositing.data.items import estimate_color
from deep_image_compositing.data.layouts import read_mat
from deep_image_compositing.data.shards import encode
from deep_image_compositing.errors import DataError
from deep_image_compositing.images import open_picture, read_image
from deep_image_compositing.images.decoding import within

_LONGEST_JPEG = 65500
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")  # of a segment, or of the end
_METADATA = re.compile(rb"[\xe1-\xed\xef\xfe]")  # APP1 to APP13, APP15 and comments
Plane = NDArray[Any]


@dataclass(frozen=True)
class Options:
    """Settings of the samples of a data set."""

    kind: str  # segmentation, mattes, backgrounds or harmonization
    root: Path  # the data set's folder
    source: str  # origin of the set, for the record
    licence: str  # its terms, for the record
    max_side: int | None = None  # longest side in pixels; None keeps sizes
    lossless: bool = False  # mattes as one RGBA PNG instead of a JPEG and a gray PNG


def make_sample(pair: Pair, options: Options) -> dict[str, bytes]:
    """Encode the fields of one sample.

    Raises:
        ImageError, DataError: files that cannot be read, do not match, or show no subject.
    """
    picture = _read(pair.image, options)
    if options.kind == "mattes":
        fields = _matte(pair, options, picture)
    else:
        fields = {"image.jpg": picture.jpeg()}
    if options.kind in ("segmentation", "harmonization"):
        fields["mask.png"] = encode(_read_label(pair.label, picture), "PNG")
    if pair.composite is not None:
        composite = _read(pair.composite, options)
        check_composite(pair.composite, composite.original, picture.original)
        fields["composite.jpg"] = composite.jpeg()
    info: dict[str, Any] = {
        "key": pair.key,
        "source": options.source,
        "licence": options.licence,
        "group": pair.group,
        "files": pair.files(options.root),
        "size": [picture.image.height, picture.image.width],
    }
    if picture.notes:
        info["notes"] = picture.notes
    return {**fields, "json": json.dumps(info, sort_keys=True).encode()}


def _matte(pair: Pair, options: Options, picture: _Picture) -> dict[str, bytes]:
    """The fields of a matte: its straight colour, its alpha, and its photograph if it has one."""
    fields: dict[str, bytes] = {}
    color = picture.image
    alpha = picture.alpha if pair.label is None else _read_label(pair.label, picture)
    if alpha is None:
        raise DataError(f"{pair.image} is meant as a cut-out, but it is opaque everywhere")
    if alpha.getbbox() is None:
        raise DataError(f"{pair.label or pair.image} shows no subject: its alpha is 0 everywhere")
    if not pair.straight:
        fields["image.jpg"] = picture.jpeg()
        color = estimate_color(picture.image, alpha)
    if options.lossless:
        color.putalpha(alpha)
        fields["foreground.png"] = encode(color, "PNG")
    else:
        keep = pair.straight and pair.label is not None
        fields["foreground.jpg"] = picture.jpeg() if keep else _jpeg(_fill(color, alpha))
        fields["alpha.png"] = encode(alpha, "PNG")
    return fields


# Pictures


@dataclass
class _Picture:
    """A photograph for a shard."""

    image: Image.Image  # RGB, upright, in sRGB, at most ``max_side`` long
    alpha: Image.Image | None  # its opacity (L) unless it is opaque everywhere
    original: Size  # before shrinking
    data: bytes | None  # the file without metadata if its pixels are stored unchanged
    notes: list[str]  # decisions of the reader

    def jpeg(self) -> bytes:
        return self.data if self.data is not None else _jpeg(self.image)


def _read(path: Path, options: Options) -> _Picture:
    photograph = read_image(path)
    image = Image.fromarray(photograph.pixels)
    alpha = None if photograph.alpha is None else Image.fromarray(photograph.alpha)
    original = image.size
    size = original if options.max_side is None else within(original, options.max_side)
    data = None
    if size == original:
        data = _without_metadata(path.read_bytes()) if _is_plain_jpeg(path) else None
    elif alpha is None:
        image = image.resize(size, Image.Resampling.LANCZOS)
    else:  # straight colour is weighted by opacity, with a small weight for invisible pixels
        weight = np.asarray(alpha, np.float32) / 255 + np.float32(1 / 255)
        image = _to_image(_mean(image, weight, lambda plane: _resize(plane, size)))
        alpha = alpha.resize(size, Image.Resampling.BILINEAR)
    return _Picture(image, alpha, original, data, list(photograph.notes))


def _read_label(path: Path | None, picture: _Picture) -> Image.Image:
    """The mask or alpha (L) at the size of its picture."""
    assert path is not None  # ensured by the layout
    pixels = None
    if path.suffix == ".mat":
        if not path.is_file():
            raise DataError(f"{path} does not exist; check the path")
        pixels = np.asarray(read_mat(path, "mask") != 0)
    return read_label(path, picture.original, picture.image.size, pixels)


def _is_plain_jpeg(path: Path) -> bool:
    """Whether a file is an RGB JPEG without colour profile or rotation."""
    with open_picture(path) as image:
        if image.format != "JPEG" or image.mode != "RGB" or "icc_profile" in image.info:
            return False
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _without_metadata(data: bytes) -> bytes:
    """A JPEG without comments, application segments, and data after its end.

    Locations hide in EXIF, XMP, IPTC, makers' notes and appended videos. JFIF's and Adobe's
    segments (APP0, APP14) stay, because they tell how to decode the colours.
    """
    parts, at = [], 0
    while marker := _MARKER.search(data, at):
        parts.append(data[at : marker.start()])  # the start, or the data of a scan
        if marker[1] == b"\xd9":
            return b"".join([*parts, b"\xff\xd9"])
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
        if not _METADATA.fullmatch(marker[1]):
            parts.append(data[marker.end() - 2 : at])
    return b"".join([*parts, data[at:]])


def _fill(color: Image.Image, alpha: Image.Image, cell: int = 16) -> Image.Image:
    """Fill invisible pixels of straight colour with that of the visible pixels around them.

    JPEG works in blocks, so other colours beside the outline would bleed into it.
    """
    weight = np.asarray(alpha, np.float32) / 255 + np.float32(1e-6)
    small = (math.ceil(color.width / cell), math.ceil(color.height / cell))

    def spread(plane: Plane) -> Plane:
        return _resize(_resize(plane, small, Image.Resampling.BOX), color.size)

    hidden = np.asarray(alpha)[..., None] == 0
    return _to_image(np.where(hidden, _mean(color, weight, spread), np.asarray(color)))


def _mean(image: Image.Image, weight: Plane, spread: Callable[[Plane], Plane]) -> Plane:
    """Weighted mean (H, W, 3) of an RGB image, where ``spread`` averages a plane spatially."""
    pixels, total = np.asarray(image, np.float32), spread(weight)
    return np.stack([spread(pixels[..., c] * weight) / total for c in range(3)], axis=-1)


def _resize(plane: Plane, size: Size, how: Image.Resampling = Image.Resampling.BILINEAR) -> Plane:
    return np.asarray(Image.fromarray(plane).resize(size, how))


def _to_image(pixels: Plane) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 255) + 0.5).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    if max(image.size) > _LONGEST_JPEG:
        raise DataError(
            f"has {image.width} x {image.height} pixels, JPEG at most {_LONGEST_JPEG} a side: "
            "give --max-side"
        )
    return encode(image, "JPEG")
