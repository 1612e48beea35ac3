"""The fields of a sample, made of the files of a data set; ``convert`` writes them into shards."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from deep_image_compositing.data import layouts
from deep_image_compositing.data.folders import Size, fit_label, read_label
from deep_image_compositing.data.layouts import Entry
from deep_image_compositing.data.shards import encode
from deep_image_compositing.errors import DataError
from deep_image_compositing.images import open_picture, read_image, read_mask

_LONGEST_JPEG = 65500


@dataclass(frozen=True)
class Options:
    """What samples are made like; part of every task.

    Attributes:
        kind: segmentation, mattes or backgrounds.
        root: the data set's folder.
        source: where the set comes from, for the record.
        licence: what may be done with it, for the record.
        max_side: longest side in pixels; None keeps sizes.
        lossless: mattes as one RGBA PNG instead of a JPEG and a gray PNG.
    """

    kind: str
    root: Path
    source: str
    licence: str
    max_side: int | None = None
    lossless: bool = False


def file_names(entry: Entry, root: Path) -> dict[str, str]:
    """Names below ``root`` of the entry's files, by role."""
    return {role: path.relative_to(root).as_posix() for role, path in entry.files.items()}


def make_sample(entry: Entry, options: Options) -> dict[str, bytes]:
    """The fields of one sample.

    Raises:
        ImageError: a file of it that is missing or cannot be read.
        DataError: files that do not belong together, or show no subject.
    """
    make = {"segmentation": _segmentation, "mattes": _matte, "backgrounds": _background}
    fields, size, notes = make[options.kind](entry, options)
    info: dict[str, Any] = {
        "key": entry.key,
        "source": options.source,
        "licence": options.licence,
        "group": entry.group,
        "files": file_names(entry, options.root),
        "size": [size[1], size[0]],
    }
    if notes:
        info["notes"] = notes
    return {**fields, "json": json.dumps(info, sort_keys=True).encode()}


_Made = tuple[dict[str, bytes], Size, list[str]]


def _segmentation(entry: Entry, options: Options) -> _Made:
    picture = _read(entry.image, options)
    mask = _read_label(entry, picture)
    fields = {"image.jpg": picture.jpeg(), "mask.png": _png(mask)}
    return fields, picture.image.size, picture.notes


def _background(entry: Entry, options: Options) -> _Made:
    picture = _read(entry.image, options)
    return {"image.jpg": picture.jpeg()}, picture.image.size, picture.notes


def _matte(entry: Entry, options: Options) -> _Made:
    fields: dict[str, bytes] = {}
    picture = _read(entry.color or entry.image, options)
    if entry.label is None:
        if picture.alpha is None:
            raise DataError(f"{entry.color} is meant as a cut-out, but it is opaque everywhere")
        color, alpha = picture.image, picture.alpha
    else:
        color, alpha = picture.image, _read_label(entry, picture)
    if alpha.getbbox() is None:
        raise DataError(f"{entry.label or entry.color} shows no subject: its alpha is 0 everywhere")
    if entry.image is not None:
        from deep_image_compositing.data.mattes import estimate_color  # brings torch

        fields["image.jpg"] = picture.jpeg()
        color = estimate_color(picture.image, alpha)
    if options.lossless:
        color.putalpha(alpha)
        fields["foreground.png"] = _png(color)
    else:
        untouched = entry.label is not None and entry.image is None
        fields["foreground.jpg"] = picture.jpeg() if untouched else _jpeg(_fill(color, alpha))
        fields["alpha.png"] = _png(alpha)
    return fields, color.size, picture.notes


# Pictures


@dataclass
class _Picture:
    """A photograph as it goes into a shard.

    Attributes:
        image: RGB, upright, in sRGB, no longer than the longest side.
        alpha: its opacity (L) when it is not opaque everywhere.
        original: width and height before it was shrunk.
        data: the file, when it can stay as it is.
        notes: what was decided while reading.
    """

    image: Image.Image
    alpha: Image.Image | None
    original: Size
    data: bytes | None
    notes: list[str]

    def jpeg(self) -> bytes:
        return self.data if self.data is not None else _jpeg(self.image)


def _read(path: Path | None, options: Options) -> _Picture:
    assert path is not None  # by its layout
    photograph = read_image(path)
    image = Image.fromarray(photograph.pixels)
    alpha = None if photograph.alpha is None else Image.fromarray(photograph.alpha)
    original, size = image.size, _shrunk(image.size, options.max_side)
    data = None
    if size != original:
        weight = None if alpha is None else np.asarray(alpha, np.float32) / 255
        image = _resize_color(image, size, weight)
        alpha = None if alpha is None else alpha.resize(size, Image.Resampling.BILINEAR)
    elif _is_plain_jpeg(path):
        data = path.read_bytes()
    return _Picture(image, alpha, original, data, list(photograph.notes))


def _read_label(entry: Entry, picture: _Picture) -> Image.Image:
    """The mask or alpha (L) at the size of its picture."""
    path = entry.label
    assert path is not None
    if path.suffix != ".mat":
        return read_label(path, picture.original, picture.image.size)
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path")
    belief = read_mask(np.asarray(layouts.read_mat(path, "mask") != 0))
    return fit_label(belief, path, picture.original, picture.image.size)


def _is_plain_jpeg(path: Path) -> bool:
    """Whether the file shows the same picture to every reader, and nothing of its place."""
    with open_picture(path) as image:
        if image.format != "JPEG" or image.mode != "RGB" or "icc_profile" in image.info:
            return False
        exif = image.getexif()
        return exif.get(ExifTags.Base.Orientation, 1) == 1 and ExifTags.IFD.GPSInfo not in exif


def _shrunk(size: Size, max_side: int | None) -> Size:
    if max_side is None or max(size) <= max_side:
        return size
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize_color(image: Image.Image, size: Size, weight: NDArray[Any] | None) -> Image.Image:
    """An RGB image at ``size``, antialiased; straight colour is averaged by its opacity."""
    if weight is None:
        return image.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(image, np.float32)
    weight = weight + np.float32(1 / 255)  # what is invisible keeps some colour
    total = _resize(weight, size)
    planes = [_resize(pixels[..., c] * weight, size) / total for c in range(3)]
    return _to_image(np.stack(planes, axis=-1))


def _fill(color: Image.Image, alpha: Image.Image, cell: int = 16) -> Image.Image:
    """Straight colour whose invisible pixels have that of what is visible around them.

    JPEG works in blocks, and would let whatever stands beside the outline bleed into it.
    """
    pixels = np.asarray(color, np.float32)
    weight = np.asarray(alpha, np.float32) / 255 + np.float32(1e-6)
    small = (math.ceil(color.width / cell), math.ceil(color.height / cell))

    def spread(plane: NDArray[Any]) -> NDArray[Any]:
        return _resize(_resize(plane, small, Image.Resampling.BOX), color.size)

    total = spread(weight)
    planes = [spread(pixels[..., c] * weight) / total for c in range(3)]
    hidden = np.asarray(alpha)[..., None] == 0
    return _to_image(np.where(hidden, np.stack(planes, axis=-1), pixels))


def _resize(
    plane: NDArray[Any], size: Size, how: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[Any]:
    return np.asarray(Image.fromarray(plane).resize(size, how))


def _to_image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 255) + 0.5).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    if max(image.size) > _LONGEST_JPEG:
        raise DataError(
            f"has {image.width} x {image.height} pixels, JPEG at most {_LONGEST_JPEG} a side: "
            "give --max-side"
        )
    return encode(image, "JPEG")


def _png(image: Image.Image) -> bytes:
    return encode(image, "PNG")
