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

from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.files import reason_of
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
"""File suffixes that ``list_images`` takes for images."""

_log = logging.getLogger("deep_image_compositing")


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph as the library uses it: upright, sRGB, 8 bits a channel.

    Attributes:
        pixels: (H, W, 3) uint8, RGB; read-only.
        alpha: (H, W) uint8 when the source was not fully opaque, else None; read-only. The
            colours in ``pixels`` are straight: they are not multiplied by it.
        name: what messages call it: its path, or the kind of its source.
        notes: what had to be decided while reading, one phrase each.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    name: str
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in ("pixels", "alpha"):
            if (array := getattr(self, field)) is not None:
                view = np.ascontiguousarray(array).view()  # the caller's own stays writable
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
"""What ``read_image`` and ``read_mask`` take."""


def read_image(
    source: ImageSource,
    *,
    max_pixels: int | None = None,
    max_side: int | None = None,
    cutout: bool = False,
) -> Photograph:
    """Read a photograph: upright, in sRGB, 8 bits a channel.

    EXIF orientation is applied and an embedded colour profile converted to sRGB. Gray, palette,
    CMYK, 16-bit and float files become RGB; wide values are scaled, not clipped. Of an animation
    or a file of many pages the first picture is read. Transparency is kept in ``alpha``.

    Args:
        source: a path; the bytes of a file; a Pillow image (its current frame); a tensor (uint8,
            or float in [0, 1]) or float array (3, H, W), (1, H, W), (4, H, W) or (H, W); a uint8
            array (H, W, 3), (H, W, 1), (H, W, 4) or (H, W); or a ``Photograph``, which is
            returned as it is.
        max_pixels: refuse files of more pixels; by default the environment variable
            ``DEEP_IMAGE_COMPOSITING_MAX_PIXELS``, else ``DEFAULT_MAX_PIXELS``.
        max_side: reduce what is longer to so many pixels on the long side, antialiased. A JPEG
            that is much longer is already decoded at a part of its size.
        cutout: transparency is what is wanted, and not remarked upon.

    Raises:
        ImageError: a file that is missing, empty, truncated, too large, or not an image.
        UsageError: an array or tensor of another shape, type or range, or another kind of source;
            a ``max_side`` below 1.
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
        # A copy, because the caller's own may change later.
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
        how = "partly" if alpha.any() else "fully"
        notes.append(f"is {how} transparent; the colours are read as stored, without it")
    _report(name, notes)
    pixels, alpha = _reduced(pixels, alpha, max_side)
    return Photograph(pixels, alpha, name, tuple(notes))


def read_mask(
    source: ImageSource, *, size: tuple[int, int] | None = None, max_pixels: int | None = None
) -> NDArray[np.float32]:
    """Read a mask: the belief, per pixel, that it shows the subject.

    The gray value is the belief, never stretched; 16-bit and float files keep their precision.
    A file that is not fully opaque gives its alpha instead of its gray, with a note. Values that
    are all 0 or 1 in an integer file mean 0 and full, with a note.

    Args:
        source: as for ``read_image``; also bool arrays and tensors (H, W) or (1, H, W).
        size: (height, width) of the photograph that the mask belongs to. A mask of another size
            is resized when its aspect agrees within 1 % or the rounding of one pixel.
        max_pixels: as for ``read_image``.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ImageError: as for ``read_image``.
        UsageError: as for ``read_image``, or an aspect that differs from that of ``size``.
    """
    name = _name_of(source)
    notes: list[str] = []
    if isinstance(source, Photograph):
        mask = _belief(source.pixels, source.alpha, notes)
    elif is_tensor(source) or isinstance(source, np.ndarray):
        mask = _array_belief(source, name, notes)
    else:
        with decoded(source, name, pixel_limit(max_pixels), notes) as image:
            opaque, alpha = separate_alpha(image)
            if is_wide(opaque) and alpha is None:
                mask = wide_gray(opaque, name, notes, binary=True)
            else:
                pixels = opaque if opaque.mode == "L" or alpha is not None else plain_rgb(opaque)
                mask = _belief(np.asarray(pixels), alpha, notes)
    _report(name, notes)
    return mask if size is None else _fit(mask, size, name)


def longest_sides(
    max_side: int | None, frame: str, scale: float = 1.0
) -> tuple[int | None, int | None]:
    """``max_side`` of ``read_image`` for both photographs of a composite of at most ``max_side``.

    The subject's photograph, then the new background, which is not reduced where it has to cover a
    ``frame`` of another aspect. ``frame`` and ``scale`` are those of ``Compositor.__call__``.
    """
    if max_side is None or frame != "background":
        return max_side, None
    enlarged = math.ceil(max_side * scale) if 1 < scale < math.inf else max_side
    return enlarged, max_side


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder by their suffix, sorted, but hidden ones and subfolders.

    Raises ``ImageError`` where it cannot be listed, or holds no image.
    """
    folder = Path(folder)
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in READABLE and not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise ImageError(f"{folder} cannot be listed: {reason_of(error)}") from error
    if not found:
        raise ImageError(f"{folder} holds no image: expected {', '.join(sorted(READABLE))}")
    return found


def _belief(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, notes: list[str]
) -> NDArray[np.float32]:
    """The mask (H, W) in [0, 1] of 8-bit pixels (H, W[, 1|3]), or of their alpha where given."""
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


def _array_belief(source: Any, name: str, notes: list[str]) -> NDArray[np.float32]:
    """The mask (H, W) in [0, 1] of an array or tensor."""
    array = as_array(source, name)
    if array.dtype == np.uint8:
        return _belief(*split_alpha(pixels_of(source, name)), notes)
    planes = float_planes(array.astype(np.float32) if array.dtype == np.bool_ else array, name)
    if planes.shape[0] != 1:
        return _belief(*split_alpha(quantize(planes)), notes)
    return planes[0].astype(np.float32).clip(0.0, 1.0)


def _fit(mask: NDArray[np.float32], size: tuple[int, int], name: str) -> NDArray[np.float32]:
    """``mask`` at (height, width) ``size``: bilinear, antialiased when it shrinks."""
    have, want = mask.shape[:2], tuple(int(side) for side in size)
    if len(want) != 2 or min(want) < 1:
        raise UsageError(f"size must be (height, width) of at least 1, got {size}")
    if have == want:
        return mask
    if not _same_aspect(have, want):
        turned = _same_aspect(have[::-1], want)
        raise UsageError(
            f"{name} is {have[1]} x {have[0]} pixels (width x height), which does not have the "
            f"aspect of its photograph, {want[1]} x {want[0]}: "
            + ("turn the mask by 90 degrees" if turned else "give the mask of this photograph")
        )
    resized = Image.fromarray(mask).resize((want[1], want[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0.0, 1.0)


def _same_aspect(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes agree in aspect within 1 %, or one pixel on a side of the smaller one."""
    first, second = one[1] * other[0], one[0] * other[1]
    larger = max(one, other, key=math.prod)
    return 100 * abs(first - second) <= max(first, second) or abs(first - second) <= max(larger)


def _reduced(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, max_side: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Gray or colour and alpha with a long side of at most ``max_side``, antialiased."""
    height, width = pixels.shape[:2]
    size = (width, height) if max_side is None else within((width, height), max_side)
    if size == (width, height):
        return pixels, alpha
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if alpha is None:
        return small, None
    # Pillow weighs colours by their alpha, so that what is hidden does not bleed into the rim.
    # Where nothing is to be seen it leaves black, but stages look at what lies there.
    whole = Image.fromarray(np.dstack([pixels, alpha])).resize(size, Image.Resampling.BICUBIC)
    color, opacity = np.split(np.asarray(whole), [3], axis=2)
    return np.where(opacity > 0, color, small), opacity[..., 0]


def _name_of(source: Any) -> str:
    """What messages call a source."""
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
