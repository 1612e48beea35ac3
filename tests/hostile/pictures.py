"""Photographs and masks: files of all formats that are damaged, inconsistent or not images."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests import photographs as made
from tests.cases import Accepted, Read
from tests.hostile.damage import spoil

WIDTH, HEIGHT = 37, 29
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@functools.cache
def pictures() -> list[bytes]:
    """Valid image files of all formats, modes, depths, profiles and orientations."""
    rgb, gray = made.scene(HEIGHT, WIDTH), made.disk(HEIGHT, WIDTH)
    plain, exif = Image.fromarray(rgb), Image.Exif()
    exif[0x0112], exif[0x8769] = 6, {0x9003: "2000:01:01 00:00:00"}
    images = [plain.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")]
    images += [plain.convert(mode) for mode in ("YCbCr", "HSV", "I", "F")]
    images += [plain.convert("P").convert("PA"), Image.fromarray(gray.astype(np.uint16) * 257)]
    images += [Image.frombytes("LAB", plain.size, rgb.tobytes())]
    profiles = made.swapped_profile(), made.gray_profile(1.8), made.cmyk_profile()
    extras: list[dict[str, Any]] = [{}, {"exif": exif.tobytes()}]
    extras += [{"icc_profile": profile} for profile in profiles]
    files = []
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "MPO"):
        for image in images:
            for extra in extras:
                with contextlib.suppress(OSError, ValueError):  # the format lacks this mode
                    files.append(made.encode(image, form, **extra))
    files += [made.frames(form, rgb, 255 - rgb) for form in ("GIF", "WEBP", "PNG", "TIFF")]
    files += [made.encode(plain, "JPEG", progressive=True, restart_marker_blocks=1)]
    files += [made.encode(plain, "TIFF", compression=c) for c in ("tiff_lzw", "jpeg", "packbits")]
    files += [made.png16(rgb.astype(np.uint16) * 257), made.png16(gray.astype(np.uint16))]
    for kind in ("u1", "u2", "u4", "i2", "i4", "f4", "f8"):
        files += [made.tiff(gray.astype(kind)), made.tiff(rgb.astype(kind))]
    return list(dict.fromkeys(files))


def another_size(data: bytes, rng: Random) -> bytes:
    """Change the width and height, wherever they occur, to other values."""
    for side in (WIDTH, HEIGHT):
        other = rng.choice((0, 1, side + 1, 1000, 30_000, 2**16 - 1, 2**31 - 1))
        for form in (">I", "<I", ">H", "<H"):
            with contextlib.suppress(struct.error):
                data = data.replace(struct.pack(form, side), struct.pack(form, other), 2)
    return data


def checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that decoders get past them."""
    out, start = data[:8], 8
    while len(data) >= start + 12:
        (size,) = struct.unpack(">I", data[start : start + 4])
        out += made.png_chunk(data[start + 4 : start + 8], data[start + 8 : start + 8 + size])
        start += size + 12
    return out


def odd_tags(rng: Random) -> bytes:
    """A TIFF with one or two wrong tags."""
    tags = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 322, 323, 339, 34675)
    values = (*range(9), 12, 16, 24, 32, 64, 1000, 34712, 50_000, 65_535, 2**31)
    pixels = rng.choice((made.scene, made.disk))(HEIGHT, WIDTH)
    odd = {rng.choice(tags): rng.choice(values) for _ in range(rng.choice((1, 2)))}
    return made.tiff(pixels.astype(rng.choice(("u1", "u2", "u4", "i2", "f4"))), odd)


def odd_picture(rng: Random) -> bytes:
    """An image file that is invalid in some way."""
    data, action = rng.choice(pictures()), rng.randrange(12)
    if action == 0:
        return odd_tags(rng)
    if action == 1:
        return rng.choice((EPS, b"", b"\0" * 99, b"GIF89a", b"<svg/>", b"....ftypheic" + bytes(99)))
    if action == 2:
        data += rng.choice(pictures())
    elif action < 5:
        data = another_size(data, rng)
    elif action < 11:
        data = spoil(data, rng)
    return checksums(data) if data[:4] == b"\x89PNG" and rng.random() < 0.5 else data


def unreadable(rng: Random, path: Path) -> Any:
    """Bytes or a path that every reader must reject."""
    action = rng.randrange(7)
    if action == 0:  # truncated
        form = rng.choice(("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"))
        data = made.encode(made.scene(200, 300), form)
        return data[: len(data) * rng.randrange(30, 80) // 100]
    if action == 1:  # no pixels
        return made.bomb(rng.choice(("PNG", "TIFF")), rng.choice((14_000, 10**6)), 14_000)
    if action == 2:  # more pixels than the limit
        return made.bomb(rng.choice(("PNG", "TIFF", "WEBP", "GIF")), 16_000, 16_000)
    if action == 3:
        return EPS
    if action == 4:
        path.mkdir()
    elif action == 5:
        os.mkfifo(path)
    else:
        path.symlink_to(rng.choice((path.name, "nowhere", "/dev/zero", "/dev/null", "/proc/self")))
    return path


def picture(rng: Random, folder: Path, read: Callable[[Any], object]) -> Read:
    """An image read by path or as bytes; raises ``Accepted`` if an unreadable one is read."""
    suffixes = (".jpg", ".png", ".tif", ".webp", ".gif", ".JPG", ".eps", ".txt", "", ".\x1b[2Jpng")
    path = folder / f"picture{rng.choice(suffixes)}"
    if rng.random() < 0.15:
        source = unreadable(rng, path)

        def check() -> None:
            read(source)
            raise Accepted("something other than a picture was read")

        return check
    if rng.random() < 0.02:
        return functools.partial(read, rng.choice(("\0", "", "a" * 5000, "/proc/self/mem", 5)))
    data = odd_picture(rng)
    path.write_bytes(data)
    return functools.partial(read, rng.choice((path, data)))


def photographs(rng: Random, folder: Path) -> Read:
    """A photograph, at full or reduced size."""
    from deep_image_compositing.images import read_image

    side = rng.choice((None, None, 8, 1000))
    return picture(rng, folder, functools.partial(read_image, max_side=side))


def masks(rng: Random, folder: Path) -> Read:
    """A mask, at its own size or for a photograph of some size."""
    from deep_image_compositing.images import read_mask

    size = rng.choice((None, (HEIGHT, WIDTH), (HEIGHT * 3, WIDTH * 3), (1, 1)))
    return picture(rng, folder, functools.partial(read_mask, size=size))
