"""Generators of small image files, ordinary and unusual, for tests of the readers.

Each takes pixels and returns the bytes of a file. What Pillow cannot write (16-bit colour, custom
colour profiles, broken headers) is assembled by hand from the format's specification.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATIONS = range(1, 9)
"""The values of the EXIF orientation tag."""


def scene(height: int = 24, width: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colour image (H, W, 3) uint8 without symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(picture)


def disk(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """A soft, off-centre disk (H, W) uint8: 255 inside, 0 outside."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - 0.45 * height, x - 0.4 * width) / (0.3 * min(height, width))
    return np.round(255 * np.clip(2.5 - 2 * distance, 0, 1)).astype(np.uint8)


def encode(picture: NDArray[Any] | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Encode an array or Pillow image in a format that Pillow writes."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def oriented(pixels: NDArray[Any], orientation: int, form: str = "PNG", **kw: Any) -> bytes:
    """A file whose pixels are stored rotated, with the EXIF orientation that undoes it."""
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, 1),
        7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(np.ascontiguousarray(stored), form, exif=exif.tobytes(), **kw)


def frames(form: str, first: NDArray[np.uint8], *others: NDArray[np.uint8], **kw: Any) -> bytes:
    """An animation (GIF, WEBP, PNG) or a multi-page TIFF."""
    images = [Image.fromarray(other) for other in others]
    return encode(first, form, save_all=True, append_images=images, **kw)


# Colour profiles


def _icc(
    device: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ "
) -> bytes:
    """An ICC version 2 profile of a colour space, built from its tags."""
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50 in 15.16 fixed point
    names = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": names, b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + white
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    header = struct.pack(">I", start + len(body)) + bytes(4) + struct.pack(">I", 0x02100000)
    header += kind + device + pcs + date + b"acsp" + bytes(28) + white + bytes(48)
    assert len(header) == 128
    return header + table + body


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
     [0.0139322, 0.0971045, 0.7141733]]
)  # fmt: skip
"""Linear sRGB to XYZ, adapted to D50."""


def rgb_profile(to_xyz: NDArray[np.float64] = SRGB_TO_XYZ, gamma: float = 2.2) -> bytes:
    """A profile whose linear RGB maps to XYZ (D50) by the matrix ``to_xyz``."""
    tags = {name + b"TRC": _curve(gamma) for name in (b"r", b"g", b"b")}
    for name, column in zip((b"r", b"g", b"b"), to_xyz.T, strict=True):
        fixed = [round(float(value) * 65536) for value in column]
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + struct.pack(">3i", *fixed)
    return _icc(b"RGB ", tags)


def swapped_profile() -> bytes:
    """A profile with red and blue exchanged."""
    return rgb_profile(SRGB_TO_XYZ[:, ::-1])


def gray_profile(gamma: float) -> bytes:
    """A gray profile with the given gamma."""
    return _icc(b"GRAY", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A CMYK profile that maps every colour to one saturated green, unlike any fallback."""
    identity = bytes(range(256))
    green = bytes([round(0.6 * 255), 128 - 60, 128 + 50])  # L* 60, a* -60, b* 50 in 8 bits
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix
    table += identity * 4 + green * 2**4 + identity * 3
    return _icc(b"CMYK", {b"A2B0": table}, kind=b"prtr", pcs=b"Lab ")


# Hand-made files


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, bits: int = 8, color: int = 2) -> bytes:
    """The signature and IHDR of a PNG; alone, a file without pixel data."""
    ihdr = struct.pack(">2I5B", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr)


def png16(values: NDArray[np.uint16], *extra: bytes) -> bytes:
    """A 16-bit PNG of (H, W) gray or (H, W, 3) colour; ``extra`` chunks go before the data."""
    color = 0 if values.ndim == 2 else 2
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = png_header(values.shape[1], values.shape[0], 16, color)
    end = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return head + b"".join(extra) + end


def bomb(form: str, width: int, height: int) -> bytes:
    """A tiny file whose header declares ``width`` x ``height`` pixels."""
    if form == "PNG":
        return png_header(width, height) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    if form == "WEBP":
        # Only an animation may have a canvas larger than its frames.
        data = bytearray(frames("WEBP", scene(), 255 - scene()))
        data[24:30] = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        return bytes(data)
    if form == "TIFF":
        return tiff(np.zeros((1, 1), np.uint8), {256: width, 257: height, 278: height})
    if form == "GIF":
        data = bytearray(encode(disk(), "GIF"))
        data[6:10] = struct.pack("<2H", width, height)
        return bytes(data)
    raise ValueError(form)


def tiff(
    values: NDArray[Any],
    tags: dict[int, int] | None = None,
    *,
    bits: int | None = None,
    repeated: int | None = None,
) -> bytes:
    """An uncompressed little-endian TIFF of (H, W) or (H, W, 3); ``tags`` override the usual ones.

    Args:
        values: unsigned, signed or float samples; 12-bit ones as uint16 with an even width.
        tags: tag numbers and values; photometric is tag 262, orientation 274.
        bits: bits per sample, if other than those of the type: 12.
        repeated: a tag to write with two values where readers expect one and warn.
    """
    channels = 1 if values.ndim == 2 else values.shape[2]
    bits = bits or values.dtype.itemsize * 8
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        data = b"".join(struct.pack(">I", int(pair))[1:] for pair in packed)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    fields = {
        256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1,
        262: 2 if channels == 3 else 1, 273: 0, 277: channels, 278: values.shape[0],
        279: len(data), 339: kind, **(tags or {}),
    }  # fmt: skip
    entries, extra = b"", b""
    extra_offset = 8 + 2 + 12 * len(fields) + 4
    fields[273] = extra_offset + 64  # the pixels
    for tag, value in sorted(fields.items()):
        if tag in (258, 339) and channels == 3:
            entries += struct.pack("<HHII", tag, 3, 3, extra_offset + len(extra))
            extra += struct.pack("<3H", *[value & 0xFFFF] * 3)
        elif tag == repeated:
            entries += struct.pack("<HHIHH", tag, 3, 2, value, value)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, value)
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)
    return head + extra.ljust(64, b"\0") + data
