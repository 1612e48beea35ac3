"""Image files whose data end early, although a decoder takes them for whole.

Pillow fills with black what a PNG's compressed data leave out, and libjpeg with gray what is
missing before the marker that ends a JPEG. Neither says so.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

_DEFLATE_RATIO = 1032
"""The most bytes that one byte of a deflate stream can stand for."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_JPEG_GRAY = {127, 128}  # the former in inverted CMYK


def lacks_bytes(file: BinaryIO) -> bool:
    """Whether a WebP, TIFF, AVIF, HEIF or JPEG 2000 file is shorter than it says it is."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > size
    if head[:4] in (b"II*\0", b"MM\0*"):  # where the directory begins
        return int.from_bytes(head[4:8], "little" if head[:1] == b"I" else "big") >= size
    place = 0
    while head[4:8] in (b"ftyp", b"jP  ") and place < size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length == 0 or not kind.strip(b"\0"):  # up to the end of the file
            return False
        place += max(length, 8)
    return place > size


def cannot_be_whole(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a PNG is too short for its pixels, however well they compress; decodes nothing."""
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
    read: Callable[[BinaryIO], Image.Image],
) -> bool:
    """Whether what Pillow has decoded is not all that the header of a PNG or JPEG promises.

    Where the last pixels are those with which a decoder fills what is missing, the file is decoded
    again: a PNG over other pixels, which stay where no data reach; a JPEG with more data before its
    end, which a decoder passes over where nothing was missing. ``read`` opens a file anew, for the
    size that ``draft`` was asked for.
    """
    file.seek(0)
    if image.format == "PNG":
        if np.asarray(image)[-1].any() and not image.info.get("interlace"):
            return False
        again = read(file)
        again.im = Image.new(again.mode, again.size, 1).im
    elif image.format == "JPEG":
        last = image.getpixel((image.width - 1, image.height - 1))
        if not set(last if isinstance(last, tuple) else [last]) <= _JPEG_GRAY:
            return False
        data = file.read()
        end = data.rfind(b"\xff\xd9")
        more = bytes(1) + bytes(17 * k % 251 for k in range(1, 250))  # never 255, which marks
        again = read(io.BytesIO(data[:end] + more + data[end:] if end > 0 else data))
        if draft is not None:
            again.draft(None, draft)
    else:
        return False
    with again:
        return again.tobytes() != image.tobytes()
