"""Image files whose data end early, although a decoder takes them for whole; ``images`` asks.

Pillow fills with black what a PNG's data leave out, when the compressed stream itself has an end;
and libjpeg fills with gray what is missing before the marker that ends a JPEG. Neither says so.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

_DEFLATE_RATIO = 1032
"""The most bytes that one byte of a deflate stream can stand for."""

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # fmt: skip
"""First column and row, and steps between them, of the seven passes of an interlaced PNG."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_BLOCK = 1 << 16
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


def cannot_be_whole(file: BinaryIO, form: str | None) -> bool:
    """Whether a PNG is too short for its pixels however well they compress; reads no data.

    Args:
        file: that Pillow has opened and not decoded yet.
        form: Pillow's name of its format.
    """
    if form != "PNG":
        return False
    packed = sum(length for _, length in _png_data(file))
    return packed * _DEFLATE_RATIO < _png_bytes(file)


def ends_early(
    file: BinaryIO,
    image: Image.Image,
    draft: tuple[int, int] | None,
    read: Callable[[BinaryIO], Image.Image],
) -> bool:
    """Whether what Pillow has decoded is not all that the header of a PNG or JPEG promises.

    Quick where the last pixels are not those with which a decoder fills what is missing.

    Args:
        file: from which the image was read.
        image: decoded.
        draft: size that was asked for with ``Image.draft``.
        read: opens such a file anew.
    """
    if image.format == "PNG":
        return _png_may_end_early(image) and _png_ends_early(file)
    return image.format == "JPEG" and _jpeg_ends_early(file, image, draft, read)


def _png_ends_early(file: BinaryIO) -> bool:
    """Whether the data of a PNG hold fewer rows than its header promises; decompresses them."""
    missing, stream = _png_bytes(file), zlib.decompressobj()
    for place, length in _png_data(file):
        file.seek(place)
        data, full = file.read(length), True
        while missing > 0 and not stream.eof and (data or full):
            try:
                rows = stream.decompress(data, _BLOCK)
            except zlib.error:  # Pillow has found the same
                return True
            missing -= len(rows)
            data, full = stream.unconsumed_tail, len(rows) == _BLOCK
    return missing > 0


def _png_may_end_early(image: Image.Image) -> bool:
    """Whether a decoded PNG looks as one does whose data end early: its last row is all zeros."""
    return bool(image.info.get("interlace")) or not np.asarray(image)[-1].any()


def _jpeg_ends_early(
    file: BinaryIO,
    image: Image.Image,
    draft: tuple[int, int] | None,
    read: Callable[[BinaryIO], Image.Image],
) -> bool:
    """Whether the data of a decoded JPEG end before its last block.

    What is missing is an even gray. Where the last pixel is that, the file is decoded again with
    more data before its end: a decoder passes them over where nothing was missing.
    """
    if not set(_pixel(image, (image.width - 1, image.height - 1))) <= _JPEG_GRAY:
        return False
    file.seek(0)
    data = file.read()
    end = data.rfind(b"\xff\xd9")
    more = bytes(1) + bytes(17 * k % 251 for k in range(1, 250))  # never 255, which marks
    with read(io.BytesIO(data[:end] + more + data[end:])) as again:
        if draft is not None:
            again.draft(None, draft)
        return end > 0 and again.tobytes() != image.tobytes()


def _pixel(image: Image.Image, place: tuple[int, int]) -> tuple[float, ...]:
    value = image.getpixel(place)
    return value if isinstance(value, tuple) else (value or 0,)


def _png_header(file: BinaryIO) -> tuple[Any, ...]:
    """Width, height, bits, kind of colour, and whether it is interlaced."""
    file.seek(16)
    width, height, bits, color, _, _, interlaced = struct.unpack(">2I5B", file.read(13))
    return width, height, bits, color, interlaced


def _png_bytes(file: BinaryIO) -> int:
    """Bytes of all rows, each with the one that names its filter."""
    width, height, bits, color, interlaced = _png_header(file)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(h * (1 + -(-w * bits * _CHANNELS[color] // 8)) for w, h in sizes if w > 0 < h)


def _png_data(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Place and length of each part of a PNG's data."""
    place = 8
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"IDAT":
            yield place + 8, length
        place += 12 + length
