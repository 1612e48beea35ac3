"""Decoding of untrusted files into upright Pillow images, within limits."""

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

from deep_image_compositing.errors import ImageError, UsageError, reason_of
from deep_image_compositing.files import check_regular
from deep_image_compositing.images import truncation

DEFAULT_MAX_PIXELS = 200_000_000
"""Files with more pixels are rejected before decoding, to guard against decompression bombs."""

MAX_PIXELS_VARIABLE = "DEEP_IMAGE_COMPOSITING_MAX_PIXELS"
"""Environment variable that overrides ``DEFAULT_MAX_PIXELS``."""

# Excludes formats that run other programs (EPS) or have no signature.
# HEIF and JXL work once the user has registered a Pillow plug-in for them.
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

_TRUNCATED = "its data end early"
_ORIENTATION, _EXIF_FOLDERS = 0x0112, (0x8769, 0x8825, 0xA005)

_pillow_lock = threading.Lock()


def open_picture(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    name: str | None = None,
    limit: int | None = None,
) -> Image.Image:
    """Open an image like ``Image.open``, restricted to photographic formats; does not decode it.

    For callers that need only the header, or that decode at a scale of their own. Excluded formats
    such as EPS would be passed to external programs that execute their content.

    Args:
        source: a path, the bytes of a file, or an open file.
        name: the image's name in error messages.
        limit: maximum number of pixels; by default that of ``read_image``.

    Raises:
        ImageError: the image has more pixels than the limit.
        PIL.UnidentifiedImageError: the file has no supported format.
        OSError: the file cannot be read.
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
    if image.width * image.height > limit:  # Pillow's check is off by one pixel for odd limits
        image.close()
        raise _too_large(name, image.width * image.height, limit)
    return image


@contextlib.contextmanager
def _pillow_limit(limit: int) -> Iterator[None]:
    """Apply our pixel limit to Pillow and silence its warnings; keep the block short.

    Pillow's limit is a global variable, so a lock is held; Pillow raises at twice its value.
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
    """Open and decode the source as an upright Pillow image; any failure raises ``ImageError``."""
    with contextlib.ExitStack() as stack:
        file: BinaryIO | None = None
        try:
            if isinstance(source, Image.Image):
                # Draft mode would permanently shrink the caller's image.
                image, max_side = source, None
            else:
                file = stack.enter_context(_opened(source, name))
                image = stack.enter_context(open_picture(file, name, limit))
            yield _load(image, name, limit, notes, max_side, file)
        except (ImageError, UsageError):
            raise
        except MemoryError as error:
            raise ImageError(f"{name} needs more memory than there is") from error
        except UnidentifiedImageError as error:
            raise ImageError(_unidentified(file or io.BytesIO(), name)) from error
        except Exception as error:  # decoders raise nearly anything on broken data
            reason = reason_of(error)
            raise ImageError(f"{name} cannot be decoded, it may be truncated: {reason}") from error


def _load(
    image: Image.Image,
    name: str,
    limit: int,
    notes: list[str],
    max_side: int | None,
    file: BinaryIO | None,
) -> Image.Image:
    """Check, decode and turn an image upright; ``file`` is None for the caller's own image."""
    if 0 in image.size:
        raise ImageError(f"{name} is empty: its size is {image.width} x {image.height} pixels")
    if image.width * image.height > limit:
        raise _too_large(name, image.width * image.height, limit)
    with _pillow_limit(limit):
        # The extra frames of an MPO are previews and gain maps, not worth a note.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            frame = image.tell() + 1
            notes.append(f"holds more than one picture; only number {frame} was read")
        if image.format == "TIFF" and getattr(image, "tile", None):
            # load() would do this too, but under Pillow's own limit and with its warnings.
            exif = image.getexif()
            exif.get(_ORIENTATION)
            for folder in _EXIF_FOLDERS:
                if folder in exif:
                    exif.get_ifd(folder)
            image.load_prepare()  # type: ignore[attr-defined]
    draft = None
    if max_side is not None:
        # JPEG decodes faster at a reduced size. At no less than twice the target size, the later
        # resize still determines the antialiasing.
        width, height = within(image.size, max_side)
        draft = (2 * width, 2 * height)
    load_whole(image, file, draft)
    with _pillow_limit(limit):  # after loading, because Pillow itself rotates TIFF files
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # broken EXIF data do not make the pixels unusable
            notes.append("has unreadable EXIF data; its orientation is taken as upright")
            orientation = 1
    if not isinstance(orientation, int) or orientation not in _UPRIGHT:
        return image
    upright = image.transpose(_UPRIGHT[orientation])
    upright.format = image.format
    return upright


def load_whole(
    image: Image.Image, file: BinaryIO | None, draft: tuple[int, int] | None = None
) -> None:
    """Decode an image; a JPEG at a reduced size of at least ``draft`` (width, height).

    ``file`` is the file that the image was opened from, if any, and is checked for truncation.
    Raises ``OSError`` when its data end early, or whatever Pillow raises for broken data.
    """
    if file is not None and truncation.cannot_be_whole(file, image):
        raise OSError(_TRUNCATED)
    if draft is not None:
        image.draft(None, draft)
    image.load()
    reopen = functools.partial(open_picture, limit=sys.maxsize)  # its size is already checked
    if file is not None and truncation.ends_early(file, image, draft, reopen):
        raise OSError(_TRUNCATED)


@contextlib.contextmanager
def _opened(source: Any, name: str) -> Iterator[BinaryIO]:
    """Open the source as a seekable, non-empty binary file."""
    if isinstance(source, bytes | bytearray | memoryview):
        file: BinaryIO = io.BytesIO(source)
    else:
        if os.path.isdir(source):
            raise ImageError(f"{name} is a folder; expected an image file")
        check_regular(source, ImageError)
        try:
            file = open(source, "rb")  # noqa: SIM115  (closed below)
        except FileNotFoundError as error:
            advice = "download the file first" if "://" in name else "check the path"
            raise ImageError(f"{name} does not exist; {advice}") from error
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
    """List the ``_FORMATS`` that this build of Pillow knows; call with the lock held."""
    Image.init()
    return [form for form in _FORMATS if form in Image.OPEN]


def _unidentified(file: BinaryIO, name: str) -> str:
    """Explain from the first bytes why Pillow rejected a file."""
    file.seek(0)
    prefix = file.read(16)
    for form in _known_formats():
        accept = Image.OPEN[form][1]
        accepted = accept(prefix) if accept else False
        if isinstance(accepted, str):
            return f"{name} is a {form} file, which this Pillow was built without"
        if accepted:
            return f"{name} begins like a {form} file, but is broken, truncated or of zero size"
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
    """Return the argument, else the limit from the environment, else the default."""
    value: Any = max_pixels
    origin = "max_pixels"
    if value is None:
        origin = MAX_PIXELS_VARIABLE
        value = os.environ.get(origin, "").strip() or DEFAULT_MAX_PIXELS
    try:
        limit = int(value)
    except (TypeError, ValueError):
        limit = 0
    if limit < 1:
        raise UsageError(f"{origin} must be a whole number of pixels above 0, got {value!r}")
    return limit


def within(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Scale ``size`` down so that its longer side is at most ``max_side``."""
    longest = max(size)
    if longest <= max_side:
        return size
    first, second = (max(1, round(side * max_side / longest)) for side in size)
    return first, second
