"""Atomic writing of images, tagged as sRGB, in the format of the file suffix."""

from __future__ import annotations

import functools
import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from deep_image_compositing.errors import ImageError, UsageError, reason_of
from deep_image_compositing.files import check_target, take, write_files
from deep_image_compositing.images.arrays import join_alpha

if TYPE_CHECKING:
    from torch import Tensor

WRITABLE = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF",
    ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
"""File suffixes that ``write_image`` supports, and their formats."""

_HOLDS_ALPHA = ("PNG", "WEBP", "TIFF")

_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}


def write_image(
    path: str | os.PathLike[str],
    image: NDArray[Any] | Tensor,
    *,
    alpha: NDArray[Any] | Tensor | None = None,
    quality: int = 95,
) -> None:
    """Write an image atomically in the format of its suffix, tagged as sRGB.

    Floats are rounded half up, so values that came from 8 bits are written back exactly. BMP files
    are not tagged; JPEG and BMP do not support alpha.

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp; its folder must exist.
        image: tensor (uint8, or float in [0, 1]) or float array (3, H, W), (1, H, W), (4, H, W) or
            (H, W); or uint8 array (H, W, 3), (H, W, 1), (H, W, 4) or (H, W). Colours are straight.
        alpha: any of these with one channel.
        quality: JPEG and WebP quality, 1 to 100; 100 makes WebP lossless.

    Raises:
        UsageError: the suffix is unknown, the format cannot hold the image, or an array is invalid.
        ImageError: the file could not be written; no partial file remains.
    """
    write_images({path: (image, alpha)}, quality=quality)


def write_images(
    pictures: Mapping[Any, tuple[NDArray[Any] | Tensor, NDArray[Any] | Tensor | None]],
    *,
    quality: int = 95,
) -> None:
    """Write several images, each with its alpha or None, all or none; see ``write_image``.

    Raises ``UsageError`` if two of them have the same file.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"quality must lie between 1 and 100, got {quality}")
    joined = {path: join_alpha(*picture) for path, picture in pictures.items()}
    for path, pixels in joined.items():
        check_writable(path, pixels.shape[:2], alpha=pixels.shape[2] in (2, 4))
    take(joined, set())
    write_files((path, _encoded(path, pixels, quality)) for path, pixels in joined.items())


def encode_image(
    suffix: str,
    image: NDArray[Any] | Tensor,
    *,
    alpha: NDArray[Any] | Tensor | None = None,
    quality: int = 95,
) -> bytes:
    """Return the bytes that ``write_image`` would write to a file with this suffix (``.png``)."""
    pixels, name = join_alpha(image, alpha), f"a picture{suffix}"
    check_format(name, pixels.shape[:2], alpha=pixels.shape[2] in (2, 4))
    return _encoded(name, pixels, quality)


def check_writable(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, *, alpha: bool = False
) -> None:
    """Raise early for a target that ``write_image`` cannot write; see ``check_format``."""
    check_target(path)
    check_format(path, size, alpha=alpha)


def check_format(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, *, alpha: bool = False
) -> None:
    """Raise ``UsageError`` unless the format of the path's suffix can hold the image.

    ``size`` is the image's (height, width), if known; ``alpha`` says whether it has transparency.
    """
    form = WRITABLE.get(Path(path).suffix.lower())
    if form is None:
        raise UsageError(
            f"{os.fspath(path)!r} does not say which format to write: "
            f"give a file whose name ends in {', '.join(WRITABLE)}"
        )
    if alpha and form not in _HOLDS_ALPHA:
        raise UsageError(
            f"{path}: {form} cannot hold an alpha; write .png, .webp or .tiff, or leave it out"
        )
    longest = _LONGEST_SIDE.get(form)
    if size is not None and longest is not None and max(size) > longest:
        raise UsageError(
            f"{path}: {form} holds at most {longest} pixels a side, the image has "
            f"{size[1]} x {size[0]}; write .png or .tiff"
        )


def _encoded(path: Any, pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode uint8 pixels (H, W, 1 to 4) in the format of the path's suffix."""
    form = WRITABLE[Path(path).suffix.lower()]
    # A gray file must not carry an RGB profile.
    icc = _srgb_profile() if pixels.shape[2] >= 3 else None
    srgb = PngImagePlugin.PngInfo()
    srgb.add(b"sRGB", b"\0")
    options: dict[str, dict[str, Any]] = {
        # Run-length encoding (Z_RLE) is 4 times as fast on photographs as the default strategy at
        # level 3, with 4 % smaller files.
        "PNG": {"pnginfo": srgb, "compress_level": 3, "compress_type": 3},
        # No chroma subsampling, which would be visible at the subject's edge.
        "JPEG": {"quality": quality, "subsampling": 0, "icc_profile": icc},
        "WEBP": {"quality": quality, "lossless": quality == 100, "exact": True, "method": 2,
                 "icc_profile": icc},
        # Horizontal differencing (tag 317) halves the size of photographs.
        "TIFF": {"compression": "tiff_lzw", "tiffinfo": {317: 2}, "icc_profile": icc},
    }  # fmt: skip
    file = io.BytesIO()
    try:
        pixels = np.ascontiguousarray(pixels)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image.save(file, form, **options.get(form, {}))
    except (OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{path} could not be encoded as {form}: {reason_of(error)}") from error
    return file.getvalue()


@functools.cache
def _srgb_profile() -> bytes:
    """An sRGB profile with a fixed date, because lcms inserts the current time."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(data)
