"""Reading photographs and masks from files, arrays and tensors."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deep_image_compositing.errors import ImageError, UsageError, reason_of
from deep_image_compositing.images.arrays import (
    as_array,
    float_planes,
    is_tensor,
    pixels_of,
    quantize,
    split_alpha,
)
from deep_image_compositing.images.color import (
    BINARY_NOTE,
    is_wide,
    plain_rgb,
    separate_alpha,
    to_srgb,
    wide_gray,
)
from deep_image_compositing.images.decoding import decoded, pixel_limit, within
from deep_image_compositing.images.writing import WRITABLE

if TYPE_CHECKING:
    from torch import Tensor

READABLE = frozenset(WRITABLE) | {
    ".apng", ".avif", ".gif", ".jfif", ".jp2", ".jpe", ".mpo", ".pbm", ".pgm", ".pnm", ".ppm",
}  # fmt: skip
"""File suffixes that ``list_images`` recognizes as images."""

_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph as the library uses it: upright, sRGB, 8 bits a channel.

    Attributes:
        pixels: (H, W, 3) uint8, RGB; read-only.
        alpha: (H, W) uint8 if the source is not fully opaque, else None; read-only. The colours
            in ``pixels`` are straight, not premultiplied.
        name: the name in messages: the path, or the kind of source.
        notes: decisions made while reading, one phrase each.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    name: str
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in ("pixels", "alpha"):
            if (array := getattr(self, field)) is not None:
                view = np.ascontiguousarray(array).view()  # the caller's array stays writable
                view.flags.writeable = False
                object.__setattr__(self, field, view)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any] | Tensor"
    " | Photograph"
)
"""The sources that ``read_image`` and ``read_mask`` accept."""


def read_image(
    source: ImageSource,
    *,
    max_pixels: int | None = None,
    max_side: int | None = None,
    cutout: bool = False,
) -> Photograph:
    """Read a photograph as upright 8-bit sRGB.

    EXIF orientation is applied and an embedded colour profile converted to sRGB. Gray, palette,
    CMYK, 16-bit and float files become RGB; wide values are scaled, not clipped. The first frame
    of an animation or multi-page file is read. Transparency is kept in ``alpha``.

    Args:
        source: a path; the bytes of a file; a Pillow image (its current frame); a tensor (uint8,
            or float in [0, 1]) or float array (3, H, W), (1, H, W), (4, H, W) or (H, W); a uint8
            array (H, W, 3), (H, W, 1), (H, W, 4) or (H, W); or a ``Photograph``, which is
            returned unchanged unless ``max_side`` reduces it.
        max_pixels: reject files with more pixels; defaults to the environment variable
            ``DEEP_IMAGE_COMPOSITING_MAX_PIXELS``, else ``DEFAULT_MAX_PIXELS``.
        max_side: scale a longer image down to this many pixels on its long side, antialiased; a
            much longer JPEG is decoded at a reduced size.
        cutout: transparency is expected, so it is not noted.

    Raises:
        ImageError: the file is missing, empty, truncated, too large, or not an image.
        UsageError: the source has an unsupported type, shape or range, or ``max_side`` is below 1.
    """
    if max_side is not None and max_side < 1:
        raise UsageError(f"max_side must be at least 1 pixel, got {max_side}")
    if isinstance(source, Photograph):
        pixels, alpha = _reduced(source.pixels, source.alpha, max_side)
        if pixels is source.pixels:
            return source
        return replace(source, pixels=pixels, alpha=alpha)
    name = _name_of(source)
    notes: list[str] = []
    if is_tensor(source) or isinstance(source, np.ndarray):
        # Copied, because the caller may modify the original later.
        pixels, alpha = split_alpha(pixels_of(source, name).copy())
        if pixels.shape[2] == 1:
            pixels = pixels.repeat(3, axis=2)
    else:
        with decoded(source, name, pixel_limit(max_pixels), notes, max_side) as image:
            icc = image.info.get("icc_profile")
            opaque, alpha = separate_alpha(image)
            if is_wide(opaque):
                opaque = Image.fromarray(quantize(wide_gray(opaque, name, notes)[None])[..., 0])
            pixels = np.asarray(to_srgb(opaque, icc, notes))
    if alpha is not None and not cutout:
        degree = "partly" if alpha.any() else "fully"
        notes.append(f"is {degree} transparent; the colours are read as stored, without it")
    _report(name, notes)
    pixels, alpha = _reduced(pixels, alpha, max_side)
    return Photograph(pixels, alpha, name, tuple(notes))


def read_mask(
    source: ImageSource, *, size: tuple[int, int] | None = None, max_pixels: int | None = None
) -> NDArray[np.float32]:
    """Read a mask: the confidence, per pixel, that it belongs to the subject.

    Gray values are used as they are, never stretched; 16-bit and float files keep their precision.
    If a file is not fully opaque, its alpha is used instead of its gray, with a note. An integer
    file of only 0 and 1 is read as 0 and full, with a note.

    Args:
        source: as for ``read_image``; also bool arrays and tensors (H, W) or (1, H, W).
        size: (height, width) of the photograph that the mask belongs to. A mask of another size
            is resized if its aspect ratio agrees within 1 % or one pixel of rounding.
        max_pixels: as for ``read_image``.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ImageError: as for ``read_image``.
        UsageError: as for ``read_image``, or the aspect ratio differs from that of ``size``.
    """
    name = _name_of(source)
    notes: list[str] = []
    if isinstance(source, Photograph):
        mask = _mask_of(source.pixels, source.alpha, notes)
    elif is_tensor(source) or isinstance(source, np.ndarray):
        mask = _mask_of_array(source, name, notes)
    else:
        with decoded(source, name, pixel_limit(max_pixels), notes) as image:
            opaque, alpha = separate_alpha(image)
            if is_wide(opaque) and alpha is None:
                mask = wide_gray(opaque, name, notes, binary=True)
            else:
                pixels = opaque if opaque.mode == "L" or alpha is not None else plain_rgb(opaque)
                mask = _mask_of(np.asarray(pixels), alpha, notes)
    _report(name, notes)
    return mask if size is None else _fit(mask, size, name)


def longest_sides(
    max_side: int | None, frame: str, scale: float = 1.0
) -> tuple[int | None, int | None]:
    """The ``max_side`` at which to read each photograph of a composite of at most ``max_side``.

    Returns that of the subject's photograph and that of the new background, which is None, no
    limit, when it has to cover the subject's frame. ``frame`` and ``scale`` are those of
    ``Compositor.__call__``.
    """
    if max_side is None or frame != "background":
        return max_side, None
    enlarged = math.ceil(max_side * scale) if 1 < scale < math.inf else max_side
    return enlarged, max_side


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the files in a folder with an image suffix, sorted, without hidden ones.

    Broken links are listed too, so that they fail when they are read instead of being overlooked.

    Raises ``ImageError`` if the folder cannot be listed or contains no image.
    """
    folder = Path(folder)
    try:
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in READABLE
            and not path.name.startswith(".")
            and not path.is_dir()
        )
    except OSError as error:
        raise ImageError(f"{folder} cannot be listed: {reason_of(error)}") from error
    if not paths:
        raise ImageError(f"{folder} holds no image: expected {', '.join(sorted(READABLE))}")
    return paths


def _mask_of(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, notes: list[str]
) -> NDArray[np.float32]:
    """Convert alpha, else 8-bit pixels (H, W[, 1|3]), to a mask (H, W) in [0, 1]."""
    if alpha is not None:
        notes.append("is not fully opaque; its alpha is the mask")
        return np.divide(alpha, np.float32(255), dtype=np.float32)
    gray = pixels if pixels.ndim == 2 else pixels[..., 0]
    if pixels.shape[2:] == (3,):
        if not all(np.array_equal(gray, pixels[..., channel]) for channel in (1, 2)):
            notes.append("is in colour; its brightness is the mask")
        gray = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if gray.max() == 1:
        notes.append(BINARY_NOTE)
        return gray.astype(np.float32)
    return np.divide(gray, np.float32(255), dtype=np.float32)


def _mask_of_array(source: Any, name: str, notes: list[str]) -> NDArray[np.float32]:
    array = as_array(source, name)
    if array.dtype == np.uint8:
        return _mask_of(*split_alpha(pixels_of(source, name)), notes)
    planes = float_planes(array.astype(np.float32) if array.dtype == np.bool_ else array, name)
    if planes.shape[0] != 1:
        return _mask_of(*split_alpha(quantize(planes)), notes)
    return planes[0].astype(np.float32).clip(0.0, 1.0)


def _fit(mask: NDArray[np.float32], size: tuple[int, int], name: str) -> NDArray[np.float32]:
    """Resize a mask to (height, width): bilinear, antialiased when it shrinks."""
    current, target = mask.shape[:2], tuple(int(side) for side in size)
    if len(target) != 2 or min(target) < 1:
        raise UsageError(f"size must be (height, width) of at least 1, got {size}")
    if current == target:
        return mask
    if not _same_aspect(current, target):
        rotated = _same_aspect(current[::-1], target)
        raise UsageError(
            f"{name} is {current[1]} x {current[0]} pixels (width x height), which does not have "
            f"the aspect ratio of its photograph, {target[1]} x {target[0]}: "
            + ("turn the mask by 90 degrees" if rotated else "give the mask of this photograph")
        )
    resized = Image.fromarray(mask).resize((target[1], target[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0.0, 1.0)


def _same_aspect(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether aspect ratios agree within 1 %, or within one pixel on a side of the smaller size."""
    first, second = a[1] * b[0], a[0] * b[1]
    larger = max(a, b, key=math.prod)
    return 100 * abs(first - second) <= max(first, second) or abs(first - second) <= max(larger)


def _reduced(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, max_side: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Scale pixels and alpha down to a long side of at most ``max_side``, antialiased."""
    height, width = pixels.shape[:2]
    size = (width, height) if max_side is None else within((width, height), max_side)
    if size == (width, height):
        return pixels, alpha
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if alpha is None:
        return small, None
    # Pillow weights colours by alpha, so hidden colours do not bleed into the edge. It makes fully
    # transparent pixels black, but stages use their colours too.
    rgba = Image.fromarray(np.dstack([pixels, alpha])).resize(size, Image.Resampling.BICUBIC)
    color, opacity = np.split(np.asarray(rgba), [3], axis=2)
    return np.where(opacity > 0, color, small), opacity[..., 0]


def _name_of(source: Any) -> str:
    """The name of a source in messages; ``UsageError`` for an unsupported type."""
    if isinstance(source, Photograph):
        return source.name
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "image in memory"
    if is_tensor(source) or isinstance(source, np.ndarray):
        return "tensor" if is_tensor(source) else "array"
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        return os.fsdecode(filename) if filename else "Pillow image"
    raise UsageError(
        "an image can be a path, bytes, a Pillow image, an array, a tensor or a Photograph, "
        f"not {type(source).__name__}"
    )


def _report(name: str, notes: list[str]) -> None:
    for note in notes:
        _log.warning("%s: %s", name, note)
