"""Files whose data end early, in every format: none is read as a whole picture."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from deep_image_compositing import read_image, read_mask
from deep_image_compositing.errors import ImageError
from tests import photographs

SCENE = 40 + photographs.scene(64, 48) // 2
BLACK_BELOW = np.concatenate([SCENE[:40], 0 * SCENE[40:]])
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip
"""First column and row, and steps between them, of the passes of an interlaced PNG."""
GRAY_BELOW = np.concatenate([SCENE[:32], 0 * SCENE[32:] + 128])


def png(rows: bytes, height: int = 64, color: int = 2, interlaced: int = 0) -> bytes:
    """A PNG 48 pixels wide whose compressed stream is whole, whatever it holds."""
    head = struct.pack(">2I5B", 48, height, 8, color, 0, 0, interlaced)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(photographs.png_chunk(*part) for part in parts)


def rows_of(pixels: NDArray[np.uint8]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced(pixels: NDArray[np.uint8]) -> bytes:
    return b"".join(rows_of(pixels[y::dy, x::dx]) for x, y, dx, dy in ADAM7)


@pytest.mark.parametrize("lost", [1, 30, 63])
def test_a_png_with_fewer_rows_than_it_promises(lost: int) -> None:
    gray = np.ascontiguousarray(SCENE[..., 0])
    for pixels, color in ((SCENE, 2), (gray, 0)):
        whole = png(rows_of(pixels), color=color)
        assert read_image(whole).pixels[..., 0].tobytes() == gray.tobytes()
        short = png(rows_of(pixels[:-lost]), color=color)
        for read in (read_image, read_mask):
            with pytest.raises(ImageError, match="truncated"):
                read(short)


def test_an_interlaced_png_with_fewer_rows() -> None:
    rows = interlaced(SCENE)
    np.testing.assert_array_equal(read_image(png(rows, interlaced=1)).pixels, SCENE)
    for cut in (1, 500, len(rows) - 40):
        with pytest.raises(ImageError, match="truncated"):
            read_image(png(rows[:-cut], interlaced=1))


def test_black_and_gray_at_the_end_are_no_sign_of_it() -> None:
    clear = np.dstack([SCENE, np.zeros((64, 48), np.uint8)])
    for pixels in (BLACK_BELOW, np.zeros_like(SCENE), clear):
        read = read_image(photographs.encode(pixels))
        np.testing.assert_array_equal(read.pixels, pixels[..., :3])
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            picture = Image.fromarray(GRAY_BELOW).convert(mode)
            data = photographs.encode(picture, "JPEG", progressive=progressive)
            assert read_image(data).size == (64, 48)
            assert read_image(data, max_side=16).size == (16, 12)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("max_side", [None, 16])
def test_a_jpeg_that_ends_before_its_end(mode: str, max_side: int | None) -> None:
    data = photographs.encode(Image.fromarray(SCENE).convert(mode), "JPEG", quality=95)
    assert read_image(data, max_side=max_side).size in ((64, 48), (16, 12))
    for part in (0.6, 0.8):
        short = data[: int(part * len(data))] + b"\xff\xd9"
        with pytest.raises(ImageError, match="truncated"):
            read_image(short, max_side=max_side)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {}), ("WEBP", {"lossless": True}),
        ("GIF", {}), ("BMP", {}), ("PPM", {}), ("JPEG2000", {}), ("AVIF", {}),
    ],
)  # fmt: skip
def test_what_is_cut_off_is_said_to_be(form: str, options: dict[str, object]) -> None:
    data = photographs.encode(SCENE, form, **options)
    assert read_image(data).size == (64, 48)
    for part in (0.6, 0.85):
        with pytest.raises(ImageError, match="truncated"):
            read_image(data[: int(part * len(data))])


def test_a_few_kilobytes_do_not_become_a_large_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    row = photographs.png_chunk(b"IDAT", zlib.compress(bytes(14_000 * 3)))
    end = photographs.png_chunk(b"IEND", b"")

    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    with pytest.raises(ImageError, match="truncated"):
        read_image(photographs.png_header(14_000, 14_000) + row + end)
