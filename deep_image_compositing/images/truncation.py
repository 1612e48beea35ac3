"""Detection of truncated image files that decoders accept silently.

Where data are missing, Pillow leaves the pixels of a PNG black, and libjpeg makes those before the
end marker of a JPEG gray.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

_DEFLATE_RATIO = 1032
"""The maximum compression ratio of deflate."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_JPEG_GRAY = {127, 128}  # 127 in inverted CMYK


def cannot_be_whole(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a PNG is too short for its pixels at any compression; decodes nothing."""
    if image.format != "PNG":
        return False
    size = file.seek(0, io.SEEK_END)
    file.seek(24)
    bits, color = file.read(2)
    return _DEFLATE_RATIO * 8 * size < image.width * image.height * bits * _CHANNELS[color]


def ends_early(
    file: BinaryIO,
    image: Image.Image,
    draft: tuple[int, int] | None,
    reopen: Callable[[BinaryIO], Image.Image],
) -> bool:
    """Whether the file of a decoded PNG or JPEG lacks data for some of its pixels.

    If the last pixels have the decoder's fill value, the file is decoded again with ``reopen`` and
    ``draft`` and the results compared: a PNG into an image of another fill value, which remains
    where data are missing; a JPEG with more data before its end marker, which change the pixels
    only where data were missing.
    """
    file.seek(0)
    if image.format == "PNG":
        if np.asarray(image)[-1].any() and not image.info.get("interlace"):
            return False
        reopened = reopen(file)
        reopened.im = Image.new(reopened.mode, reopened.size, 1).im
    elif image.format == "JPEG":
        last = image.getpixel((image.width - 1, image.height - 1))
        if not set(last if isinstance(last, tuple) else [last]) <= _JPEG_GRAY:
            return False
        data = file.read()
        end = data.rfind(b"\xff\xd9")
        extra = bytes(1) + bytes(17 * k % 251 for k in range(1, 250))  # never 255, the marker byte
        reopened = reopen(io.BytesIO(data[:end] + extra + data[end:] if end > 0 else data))
        if draft is not None:
            reopened.draft(None, draft)
    else:
        return False
    with reopened:
        return reopened.tobytes() != image.tobytes()
