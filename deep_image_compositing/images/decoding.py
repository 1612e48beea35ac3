"""From a file of unknown origin to a decoded, upright Pillow image, within limits."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.files import check_regular, reason_of
from deep_image_compositing.images import truncation

DEFAULT_MAX_PIXELS = 200_000_000
"""Pixels above which a file is refused unread, as a guard against decompression bombs."""

MAX_PIXELS_VARIABLE = "DEEP_IMAGE_COMPOSITING_MAX_PIXELS"
"""Environment variable that replaces ``DEFAULT_MAX_PIXELS``."""

# Formats of photographs. Left out: those that run other programs (EPS) or have no signature.
# HEIF and JXL are there for users who have registered a Pillow plug-in for them.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "MPO", "HEIF", "JXL",
)  # fmt: skip

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_EARLY = "its data end early: it is truncated"
_ORIENTATION, _EXIF_FOLDERS = 0x0112, (0x8769, 0x8825, 0xA005)

_pillow_lock = threading.Lock()


def open_picture(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    name: str | None = None,
    limit: int | None = None,
) -> Image.Image:
    """Open a picture as ``Image.open`` does, but only in a format of photographs; not decoded yet.

    For whoever needs no more than a header, or decodes at a scale of its own. Other formats, such
    as EPS, would be handed to programs that run what they hold.

    Args:
        source: a path, the bytes of a file, or a file.
        name: what messages call it.
        limit: of its pixels; by default that of ``read_image``.

    Raises:
        ImageError: it has more pixels than the limit of ``read_image``.
        PIL.UnidentifiedImageError: it is of no such format.
        OSError: it cannot be read.
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture"
    limit = pixel_limit(limit)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with _pillow_limit(limit):
            image = Image.open(file, formats=_known_formats())
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise _too_large(name, int(count[0]) if count else limit + 1, limit) from error
    if image.width * image.height > limit:  # Pillow's own check is one pixel off, for odd limits
        image.close()
        raise _too_large(name, image.width * image.height, limit)
    return image


@contextlib.contextmanager
def _pillow_limit(limit: int) -> Iterator[None]:
    """Hold Pillow to our limit and keep its warnings in, for a short and exclusive moment.

    Its limit is a global that raises at twice its value; decoding itself happens outside.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (limit + 1) // 2
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = previous


@contextlib.contextmanager
def decoded(
    source: Any, name: str, limit: int, notes: list[str], max_side: int | None = None
) -> Iterator[Image.Image]:
    """The source as a decoded, upright Pillow image; everything that fails is an ImageError."""
    with contextlib.ExitStack() as stack:
        file: BinaryIO | None = None
        try:
            if isinstance(source, Image.Image):
                # The caller's own image would stay as small as it was decoded.
                image, max_side = source, None
            else:
                file = stack.enter_context(_opened(source, name))
                image = stack.enter_context(open_picture(file, name, limit))
            yield _load(image, name, limit, notes, max_side, file)
        except (ImageError, UsageError):
            raise
        except MemoryError as error:
            raise ImageError(f"{name} needs more memory than there is") from error
        except Exception as error:  # decoders raise nearly anything on broken data
            cut = re.search("truncated|not enough image data", str(error).lower())
            if cut or (file is not None and truncation.lacks_bytes(file)):
                raise ImageError(f"{name} is truncated: the end of the file is missing") from error
            if isinstance(error, UnidentifiedImageError):
                raise ImageError(_unidentified(file or io.BytesIO(), name)) from error
            raise ImageError(f"{name} cannot be decoded: {reason_of(error)}") from error


def _load(
    image: Image.Image,
    name: str,
    limit: int,
    notes: list[str],
    max_side: int | None,
    file: BinaryIO | None,
) -> Image.Image:
    """Decode ``image``, from ``file`` unless the caller's own, after all checks; upright."""
    if 0 in image.size:
        raise ImageError(f"{name} is empty: its size is {image.width} x {image.height} pixels")
    if image.width * image.height > limit:
        raise _too_large(name, image.width * image.height, limit)
    with _pillow_limit(limit):
        # Phones store previews and gain maps as further frames of a MPO: no news to anybody.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            frame = image.tell() + 1
            notes.append(f"holds more than one picture; only number {frame} was read")
        if image.format == "TIFF" and getattr(image, "tile", None):
            # What load() would do under Pillow's own limit and with Pillow's own warnings.
            exif = image.getexif()
            exif.get(_ORIENTATION)
            for folder in _EXIF_FOLDERS:
                if folder in exif:
                    exif.get_ifd(folder)
            image.load_prepare()  # type: ignore[attr-defined]
    draft = None
    if max_side is not None:
        # JPEG decodes small for a fraction of the time; at twice the size that is wanted, or more,
        # the antialiasing is still that of the reduction.
        width, height = within(image.size, max_side)
        draft = (2 * width, 2 * height)
    load_whole(image, file, draft)
    with _pillow_limit(limit):  # after loading, because Pillow itself turns TIFF files
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # a broken EXIF block is no reason to refuse the picture
            notes.append("has unreadable EXIF data; its orientation is taken as upright")
            orientation = 1
    if not isinstance(orientation, int) or orientation not in _UPRIGHT:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    turned.format = image.format
    return turned


def load_whole(
    image: Image.Image, file: BinaryIO | None, draft: tuple[int, int] | None = None
) -> None:
    """Decode a picture, a JPEG at no less than ``draft`` (width, height).

    Raises ``OSError`` where its data end early by ``file``, from which it was opened, if there is
    one; or anything else that Pillow raises about broken data.
    """
    if file is not None and truncation.cannot_be_whole(file, image):
        raise OSError(_EARLY)
    if draft is not None:
        image.draft(None, draft)
    image.load()
    again = functools.partial(open_picture, limit=sys.maxsize)  # its size has been looked at
    if file is not None and truncation.ends_early(file, image, draft, again):
        raise OSError(_EARLY)


@contextlib.contextmanager
def _opened(source: Any, name: str) -> Iterator[BinaryIO]:
    """The source as a seekable binary file that is not empty."""
    if isinstance(source, bytes | bytearray | memoryview):
        file: BinaryIO = io.BytesIO(source)
    else:
        if os.path.isdir(source):
            raise ImageError(f"{name} is a folder; expected an image file")
        check_regular(source, ImageError)
        try:
            file = open(source, "rb")  # noqa: SIM115  (closed below)
        except FileNotFoundError as error:
            raise ImageError(f"{name} does not exist; check the path") from error
        except (OSError, ValueError) as error:
            raise ImageError(f"{name} cannot be opened: {reason_of(error)}") from error
    with file:
        if not file.seekable():
            file = io.BytesIO(file.read())
        if not file.read(1):
            raise ImageError(f"{name} is empty: it holds 0 bytes")
        file.seek(0)
        yield file


def _known_formats() -> list[str]:
    """The formats of ``_FORMATS`` that this Pillow has; call under the lock."""
    Image.init()
    return [form for form in _FORMATS if form in Image.OPEN]


def _unidentified(file: BinaryIO, name: str) -> str:
    """Why Pillow did not take the file, as far as its first bytes tell."""
    file.seek(0)
    prefix = file.read(16)
    for form in _known_formats():
        accept = Image.OPEN[form][1]
        answer = accept(prefix) if accept else False
        if isinstance(answer, str):
            return f"{name} is a {form} file, which this Pillow was built without"
        if answer:
            return f"{name} begins like a {form} file, but its header is broken or of zero size"
    if prefix[4:8] == b"ftyp" and prefix[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return (
            f"{name} is a HEIC file, which Pillow cannot read: convert it to JPEG or PNG, or "
            "register the plug-in of the package pillow-heif"
        )
    return f"{name} is not an image of a known format: expected {', '.join(_known_formats())}"


def _too_large(name: str, pixels: int, limit: int) -> ImageError:
    return ImageError(
        f"{name} has {pixels:,} pixels, more than the limit of {limit:,} that guards against "
        f"decompression bombs; if you trust it, use --max-pixels {pixels} (max_pixels=) or set the "
        f"environment variable {MAX_PIXELS_VARIABLE}={pixels}"
    )


def pixel_limit(max_pixels: int | None) -> int:
    """The limit of this call: its argument, else the environment, else the default."""
    given: Any = max_pixels
    origin = "max_pixels"
    if given is None:
        origin = MAX_PIXELS_VARIABLE
        given = os.environ.get(origin, "").strip() or DEFAULT_MAX_PIXELS
    try:
        limit = int(given)
    except (TypeError, ValueError):
        limit = 0
    if limit < 1:
        raise UsageError(f"{origin} must be a whole number of pixels above 0, got {given!r}")
    return limit


def within(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """``size`` with its longer side reduced to ``max_side``; as it is when it is no longer."""
    longest = max(size)
    if longest <= max_side:
        return size
    first, second = (max(1, round(side * max_side / longest)) for side in size)
    return first, second
