"""Reading and writing photographs: everything that stands between a file and clean sRGB pixels.

The compositor, the command line and the data tools read and write through this module, so that
orientation, colour profiles, bit depths, transparency and limits are treated the same everywhere.
What had to be decided on the way (an alpha kept aside, a broken profile ignored) becomes a note:
it stands in :attr:`Photograph.notes` and is logged as a warning, never passed over in silence.

Pillow decodes; torch is imported only by the helpers that return or take tensors.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import re
import secrets
import stat
import struct
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from deep_image_compositing import truncation
from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.files import check_regular

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_MAX_PIXELS = 200_000_000
"""Pixels above which a file is refused unread, as a guard against decompression bombs."""

MAX_PIXELS_VARIABLE = "DEEP_IMAGE_COMPOSITING_MAX_PIXELS"
"""Environment variable that replaces :data:`DEFAULT_MAX_PIXELS`."""

TOLERANCE = 1e-3
"""How far outside [0, 1] a float may lie; the value of ``conventions.TOLERANCE``."""

WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""File suffixes that :func:`write_image` knows, and their formats."""

READABLE = frozenset(WRITABLE) | {
    ".apng", ".avif", ".gif", ".jfif", ".jp2", ".jpe", ".mpo", ".pbm", ".pgm", ".pnm", ".ppm",
}  # fmt: skip
"""File suffixes that :func:`list_images` takes for images."""

# Formats of photographs. Left out: those that run other programs (EPS) or have no signature.
# HEIF and JXL are there for users who have registered a Pillow plug-in for them.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "MPO", "HEIF", "JXL",
)  # fmt: skip
_HOLDS_ALPHA = ("PNG", "WEBP", "TIFF")
_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _EXIF_FOLDERS = 0x0112, (0x8769, 0x8825, 0xA005)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262

_log = logging.getLogger("deep_image_compositing")
_pillow_lock = threading.Lock()


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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any] | Tensor"
    " | Photograph"
)
"""What :func:`read_image` and :func:`read_mask` take."""


# Reading


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
            array (H, W, 3), (H, W, 1), (H, W, 4) or (H, W); or a :class:`Photograph`, which is
            returned as it is.
        max_pixels: refuse files of more pixels; by default the environment variable
            ``DEEP_IMAGE_COMPOSITING_MAX_PIXELS``, else :data:`DEFAULT_MAX_PIXELS`.
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
        return replace(source, pixels=_read_only(pixels), alpha=_read_only(alpha))
    notes: list[str] = []
    if _is_tensor(source) or isinstance(source, np.ndarray):
        name = "tensor" if _is_tensor(source) else "array"
        pixels, alpha = _split(_pixels(source, name).copy())  # the caller's own may change later
        if pixels.shape[2] == 1:
            pixels = pixels.repeat(3, axis=2)
    else:
        name = _name_of(source)
        with _decoded(source, name, _limit(max_pixels), notes, max_side) as image:
            icc = image.info.get("icc_profile")
            opaque, alpha = _separate_alpha(image)
            if _is_wide(opaque):
                opaque = Image.fromarray(_round(_wide_gray(opaque, name, notes)))
            pixels = np.asarray(_to_srgb(opaque, icc, notes))
    if alpha is not None and not cutout:
        how = "partly" if alpha.any() else "fully"
        notes.append(f"is {how} transparent; the colours are read as stored, without it")
    _report(name, notes)
    pixels, alpha = _reduced(pixels, alpha, max_side)
    return Photograph(_read_only(pixels), _read_only(alpha), name, tuple(notes))


def read_mask(
    source: ImageSource, *, size: tuple[int, int] | None = None, max_pixels: int | None = None
) -> NDArray[np.float32]:
    """Read a mask: the belief, per pixel, that it shows the subject.

    The gray value is the belief, never stretched; 16-bit and float files keep their precision.
    A file that is not fully opaque gives its alpha instead of its gray, with a note. Values that
    are all 0 or 1 in an integer file mean 0 and full, with a note.

    Args:
        source: as for :func:`read_image`; also bool arrays and tensors (H, W) or (1, H, W).
        size: (height, width) of the photograph that the mask belongs to. A mask of another size
            is resized when its aspect agrees within 1 % or the rounding of one pixel.
        max_pixels: as for :func:`read_image`.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ImageError: as for :func:`read_image`.
        UsageError: as for :func:`read_image`, or an aspect that differs from that of ``size``.
    """
    notes: list[str] = []
    if isinstance(source, Photograph):
        name = source.name
        mask = _belief(source.pixels, source.alpha, notes)
    elif _is_tensor(source) or isinstance(source, np.ndarray):
        name = "tensor" if _is_tensor(source) else "array"
        mask = _array_belief(source, name, notes)
    else:
        name = _name_of(source)
        with _decoded(source, name, _limit(max_pixels), notes) as image:
            opaque, alpha = _separate_alpha(image)
            if _is_wide(opaque) and alpha is None:
                mask = _wide_gray(opaque, name, notes, binary=True)
            else:
                pixels = opaque if opaque.mode == "L" or alpha is not None else _plain_rgb(opaque)
                mask = _belief(np.asarray(pixels), alpha, notes)
    _report(name, notes)
    return mask if size is None else _fit(mask, size, name)


def longest_sides(
    max_side: int | None, frame: str, scale: float = 1.0
) -> tuple[int | None, int | None]:
    """Pixels on the long side that a composite of at most ``max_side`` needs of its photographs.

    Args:
        max_side: of the composite; None for no limit.
        frame: ``foreground`` or ``background``, whose frame the composite has.
        scale: with the background's frame, size of the subject's photograph; at 1 it just fits.

    Returns:
        ``max_side`` of :func:`read_image` for the subject's photograph and for the new background.
        The latter is not reduced where it has to cover a frame of another aspect.
    """
    if max_side is None or frame != "background":
        return max_side, None
    enlarged = math.ceil(max_side * scale) if 1 < scale < math.inf else max_side
    return enlarged, max_side


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder by their suffix, sorted; hidden files and subfolders are skipped.

    Raises:
        ImageError: the folder cannot be listed, or holds no image.
    """
    folder = Path(folder)
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in READABLE and not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise ImageError(f"{folder} cannot be listed: {_reason(error)}") from error
    if not found:
        raise ImageError(f"{folder} holds no image: expected {', '.join(sorted(READABLE))}")
    return found


# Writing


def write_image(
    path: str | os.PathLike[str],
    image: NDArray[Any] | Tensor,
    *,
    alpha: NDArray[Any] | Tensor | None = None,
    quality: int = 95,
) -> None:
    """Write a picture in the format of its suffix, whole or not at all, tagged as sRGB.

    Floats are rounded half up, so values that came from 8 bits are written back exactly. BMP
    cannot hold a tag; there is no alpha in JPEG and BMP.

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp; its folder must exist.
        image: tensor (uint8, or float in [0, 1]) or float array (3, H, W), (1, H, W), (4, H, W) or
            (H, W); or uint8 array (H, W, 3), (H, W, 1), (H, W, 4) or (H, W). The colour is
            straight.
        alpha: any of these with one channel.
        quality: of JPEG and WebP, 1 to 100; 100 makes WebP lossless.

    Raises:
        UsageError: an unknown suffix, a format that cannot hold the picture, or a wrong array.
        ImageError: the file could not be written; nothing is left behind.
    """
    write_images({path: (image, alpha)}, quality=quality)


def write_images(
    pictures: Mapping[Any, tuple[NDArray[Any] | Tensor, NDArray[Any] | Tensor | None]],
    *,
    quality: int = 95,
) -> None:
    """Write several pictures, all of them or none; see :func:`write_image`.

    Args:
        pictures: picture and alpha, or None, by path.
        quality: of JPEG and WebP.

    Raises:
        UsageError: as for :func:`write_image`.
        ImageError: as for :func:`write_image`.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"quality must lie between 1 and 100, got {quality}")
    joined = {path: _joined(*picture) for path, picture in pictures.items()}
    for path, pixels in joined.items():
        check_writable(path, pixels.shape[:2], alpha=pixels.shape[2] in (2, 4))
    _write_all((path, _encode(path, pixels, quality)) for path, pixels in joined.items())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: aside in the same folder, then renamed.

    Raises:
        ImageError: the file could not be written; nothing is left behind.
    """
    _write_all([(path, data)])


def check_writable(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, *, alpha: bool = False
) -> None:
    """Tell before slow work what would stop :func:`write_image` after it.

    Args:
        path: of the file.
        size: (height, width) of the picture, where it is known.
        alpha: whether the picture has one.

    Raises:
        UsageError: an unknown suffix, or a format that cannot hold the picture.
        ImageError: a folder that is not there, or may not be written to.
    """
    _writable_target(path)
    form = WRITABLE.get(Path(path).suffix.lower())
    if form is None:
        raise UsageError(
            f"{os.fspath(path)!r} does not say which format to write: "
            f"let it end in {', '.join(WRITABLE)}"
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


# Between arrays and tensors


def to_tensor(pixels: NDArray[Any]) -> Tensor:
    """A picture as a float32 tensor in [0, 1].

    Args:
        pixels: uint8 (H, W, C) or (H, W), divided by 255; or float (H, W) in [0, 1], taken as
            it is (a mask of :func:`read_mask`).

    Returns:
        (C, H, W), or (1, H, W) for two axes; a copy.

    Raises:
        UsageError: another type or number of axes.
    """
    import torch

    is_float = pixels.dtype.kind == "f" and pixels.ndim == 2
    if not is_float and not (pixels.dtype == np.uint8 and pixels.ndim in (2, 3)):
        raise UsageError(
            "expected uint8 (H, W, C) or (H, W), or float (H, W), got "
            f"{pixels.dtype} {pixels.shape}"
        )
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    out = np.empty(planes.shape, dtype=np.float32)
    full = np.float32(1 if is_float else 255)
    # Twice as fast on a CPU as to permute, convert and divide in torch.
    for channel, rows in _bands(planes):
        np.divide(planes[channel, rows], full, out=out[channel, rows], dtype=np.float32)
    return torch.from_numpy(out)


def to_uint8(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """A float picture as 8-bit pixels, rounded half up; the inverse of :func:`to_tensor`.

    Args:
        image: float tensor (any device) or array (C, H, W) with 1, 3 or 4 channels, or (H, W),
            in [0, 1].

    Returns:
        (H, W, C) uint8, or (H, W) for one channel.

    Raises:
        UsageError: another shape or type, an empty picture, or values outside [0, 1].
    """
    pixels = _quantize(_float_planes(image, "image"))
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


# Below: decoding


@contextlib.contextmanager
def _pillow(limit: int) -> Iterator[None]:
    """Hold Pillow to our limit and keep its warnings in, for a short and exclusive moment.

    Pillow's limit is a module global that warns at once and raises at twice its value, here at
    ours. It is put back before another thread of ours can look; decoding itself happens outside.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (limit + 1) // 2
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = previous


def _open(file: BinaryIO, limit: int) -> Image.Image:
    """What Pillow sees in a file, not decoded yet."""
    with _pillow(limit):
        return Image.open(file, formats=_known_formats())


@contextlib.contextmanager
def _decoded(
    source: Any, name: str, limit: int, notes: list[str], max_side: int | None = None
) -> Iterator[Image.Image]:
    """The source as a decoded, upright Pillow image; everything that fails is an ImageError."""
    with contextlib.ExitStack() as stack:
        file: BinaryIO | None = None
        try:
            if isinstance(source, Image.Image):
                image = source
            else:
                file = stack.enter_context(_opened(source, name))
                image = _open(file, limit)
                stack.callback(image.close)
            # The caller's own image would stay as small as it was decoded.
            side = None if image is source else max_side
            yield _load(image, name, limit, notes, side, file)
        except (ImageError, UsageError):
            raise
        except Image.DecompressionBombError as error:
            count = re.search(r"\d+", str(error))
            raise _too_large(name, int(count[0]) if count else limit + 1, limit) from error
        except MemoryError as error:
            raise ImageError(f"{name} needs more memory than there is") from error
        except Exception as error:  # decoders raise nearly anything on broken data
            cut = re.search("truncated|not enough image data", str(error).lower())
            if cut or (file is not None and truncation.lacks_bytes(file)):
                raise _truncated(name) from error
            if isinstance(error, UnidentifiedImageError):
                raise ImageError(_unidentified(file or io.BytesIO(), name)) from error
            raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def _load(
    image: Image.Image,
    name: str,
    limit: int,
    notes: list[str],
    max_side: int | None = None,
    file: BinaryIO | None = None,
) -> Image.Image:
    """Decode ``image`` after the checks that its header allows, and turn it upright.

    ``file`` is what it is read from; None for the caller's own image.
    """
    if 0 in image.size:
        raise ImageError(f"{name} is empty: its size is {image.width} x {image.height} pixels")
    if image.width * image.height > limit:
        raise _too_large(name, image.width * image.height, limit)
    with _pillow(limit):
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
        # JPEG decodes at an eighth, a quarter or half of its size for a fraction of the time; at
        # twice the size that is wanted, or more, the antialiasing is still that of the reduction.
        width, height = _within(image.size, max_side)
        draft = (2 * width, 2 * height)
        image.draft(None, draft)
    if file is not None and truncation.cannot_be_whole(file, image.format):
        raise _truncated(name)
    image.load()
    again = functools.partial(_open, limit=limit)
    if file is not None and truncation.ends_early(file, image, draft, again):
        raise _truncated(name)
    with _pillow(limit):  # after loading, because Pillow itself turns TIFF files
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # a broken EXIF block is no reason to refuse the picture
            notes.append("has unreadable EXIF data; its orientation is taken as upright")
            orientation = 1
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format
    return turned


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
            raise ImageError(f"{name} cannot be opened: {_reason(error)}") from error
    with file:
        if not file.seekable():
            file = io.BytesIO(file.read())
        if not file.read(1):
            raise ImageError(f"{name} is empty: it holds 0 bytes")
        file.seek(0)
        yield file


def _known_formats() -> list[str]:
    """The formats of :data:`_FORMATS` that this Pillow has; call under the lock."""
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


def _truncated(name: str) -> ImageError:
    return ImageError(f"{name} is truncated: the end of the file is missing")


def _too_large(name: str, pixels: int, limit: int) -> ImageError:
    return ImageError(
        f"{name} has {pixels:,} pixels, more than the limit of {limit:,} that guards against "
        f"decompression bombs; if you trust it, use --max-pixels {pixels} (max_pixels=) or set the "
        f"environment variable {MAX_PIXELS_VARIABLE}={pixels}"
    )


def _limit(max_pixels: int | None) -> int:
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


# Below: from any mode to 8-bit RGB


def _is_wide(image: Image.Image) -> bool:
    """Whether the mode holds one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _separate_alpha(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """The image without transparency, and its alpha (H, W) unless that is opaque everywhere.

    The image comes back in mode L, RGB, CMYK or LAB, or in a wide one.
    """
    if image.mode == "La":
        image = image.convert("LA")
    alpha: NDArray[np.uint8] | None = None
    if _is_wide(image):
        key = image.info.get("transparency")
        if isinstance(key, int):  # the one gray value of a 16-bit PNG that is transparent
            alpha = np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)
    elif image.mode == "LA":
        alpha = np.asarray(image.getchannel("A"))
        image = image.getchannel("L")
    elif image.mode in ("PA", "RGBA", "RGBa") or image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    return image, None if alpha is None or alpha.min() == 255 else alpha


def _to_srgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    """An opaque 8-bit image of mode L, RGB, CMYK or LAB as RGB in sRGB."""
    if icc:
        try:
            return _convert_profile(image, icc)
        except _ProfileMismatch as mismatch:
            notes.append(str(mismatch))
        except Exception as error:  # lcms raises several kinds, and is optional in Pillow
            reason = _reason(error)
            notes.append(f"has a colour profile that cannot be used, which is ignored ({reason})")
    if image.mode == "CMYK":
        notes.append("is CMYK without a usable colour profile; its colours are approximate")
    return _plain_rgb(image)


def _plain_rgb(image: Image.Image) -> Image.Image:
    """An opaque image as RGB, without regard to its profile."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]
    return image.convert("RGB")


class _ProfileMismatch(Exception):
    """A profile for another kind of image than the one it is in."""


def _convert_profile(image: Image.Image, icc: bytes) -> Image.Image:
    """``image`` from the colours of the profile to sRGB, relative colorimetric.

    A profile that moves no colour by more than one level is sRGB in all but rounding; then the
    pixels are left alone, so that reading what was written gives the same values.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
    if mode == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if mode != image.mode:
        raise _ProfileMismatch(
            f"has a colour profile for {space} in a {image.mode} image, which is ignored"
        )
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode == "L":  # lcms shortens the dark end; unhurried, for no more than the 256 levels
        flags |= ImageCms.Flags.NOOPTIMIZE
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=flags,
    )
    if mode in ("RGB", "L"):
        probe = Image.fromarray(_probe() if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        moved = np.asarray(ImageCms.applyTransform(probe, transform))
        distance = np.asarray(probe.convert("RGB"), dtype=np.int16) - moved
        if np.abs(distance).max() <= 1:
            return image.convert("RGB")
        if mode == "L":
            return Image.fromarray(moved[0][np.asarray(image)])
    return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]


@functools.cache
def _probe() -> NDArray[np.uint8]:
    """(1, 985, 3) uint8: a lattice of 9 levels a channel, and all grays."""
    levels = np.linspace(0, 255, 9).round()
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    grays = np.arange(256)[:, None].repeat(3, axis=1)
    return np.concatenate([lattice, grays]).astype(np.uint8)[None]


def _wide_gray(
    image: Image.Image, name: str, notes: list[str], *, binary: bool = False
) -> NDArray[np.float32]:
    """The gray of an image of mode I;16, I or F as float32 (H, W) in [0, 1].

    Sixteen bits have a known scale. Modes I and F do not, so the smallest usual scale that holds
    their values is taken, with a note unless it is that of floats in [0, 1]. With
    ``binary``, integers of 0 and 1 are 0 and full.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        top = float(2**bits - 1) if 8 < bits <= 16 and high < 2**bits else 65535.0
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        top = 65535.0
    else:
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
        slack = TOLERANCE if image.mode == "F" else 0.0
        # Written so that NaN fails too.
        if not (low >= -slack and high <= scales[-1]):
            raise ImageError(
                f"{name} stores gray values from {low:g} to {high:g}; "
                f"expected finite ones between 0 and {scales[-1]:g}"
            )
        top = next(scale for scale in scales if high <= scale + slack)
        if top > 1 and not (binary and image.mode == "I" and high <= 1):
            notes.append(
                f"stores wide gray values up to {high:g}; they are read on a scale of 0 to {top:g}"
            )
    if binary and image.mode != "F" and high == 1:
        notes.append(_BINARY_NOTE)
        top = 1.0
    gray = np.divide(values, np.float32(top), dtype=np.float32).clip(0.0, 1.0)
    inverted = image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0  # white is zero
    return 1 - gray if inverted else gray


# Below: masks

_BINARY_NOTE = "holds only the values 0 and 1; they are read as 0 and 255"


def _belief(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, notes: list[str]
) -> NDArray[np.float32]:
    """The mask (H, W) in [0, 1] of 8-bit pixels (H, W[, 1|3]), or of their alpha where given."""
    if alpha is not None:
        notes.append("is not fully opaque; its alpha is the mask")
        return np.divide(alpha, np.float32(255), dtype=np.float32)
    if pixels.ndim == 2:
        gray = pixels
    elif pixels.shape[2] == 1:
        gray = pixels[..., 0]
    else:
        red, green, blue = (pixels[..., channel] for channel in range(3))
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            notes.append("is in colour; its brightness is the mask")
        gray = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if gray.max() == 1:
        notes.append(_BINARY_NOTE)
        return gray.astype(np.float32)
    return np.divide(gray, np.float32(255), dtype=np.float32)


def _array_belief(source: Any, name: str, notes: list[str]) -> NDArray[np.float32]:
    """The mask (H, W) in [0, 1] of an array or tensor."""
    if _is_tensor(source) and str(source.dtype) == "torch.bool":
        source = source.cpu().numpy()
    if str(source.dtype) in ("uint8", "torch.uint8"):
        return _belief(*_split(_pixels(source, name)), notes)
    if isinstance(source, np.ndarray) and source.dtype == np.bool_:
        source = source.astype(np.float32)
    planes = _float_planes(source, name)
    if planes.shape[0] != 1:
        return _belief(*_split(_quantize(planes)), notes)
    plane = planes[0].cpu().numpy() if _is_tensor(planes) else planes[0]
    return plane.astype(np.float32).clip(0.0, 1.0)


def _fit(mask: NDArray[np.float32], size: tuple[int, int], name: str) -> NDArray[np.float32]:
    """``mask`` at (height, width) ``size``: bilinear, antialiased when it shrinks."""
    have, want = mask.shape[:2], tuple(int(side) for side in size)
    if len(want) != 2 or min(want) < 1:
        raise UsageError(f"size must be (height, width) of at least 1, got {size}")
    if have == want:
        return mask
    if not _same_aspect(have[0], have[1], want[0], want[1]):
        turned = _same_aspect(have[1], have[0], want[0], want[1])
        raise UsageError(
            f"{name} is {have[1]} x {have[0]} pixels (width x height), which does not have the "
            f"aspect of its photograph, {want[1]} x {want[0]}: "
            + ("turn the mask by 90 degrees" if turned else "give the mask of this photograph")
        )
    resized = Image.fromarray(mask).resize((want[1], want[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0.0, 1.0)


def _same_aspect(height: int, width: int, other_height: int, other_width: int) -> bool:
    """Whether two sizes agree in aspect within 1 %, or one pixel on a side of the smaller one."""
    first, second = width * other_height, height * other_width
    larger = max((height, width), (other_height, other_width), key=lambda size: size[0] * size[1])
    return 100 * abs(first - second) <= max(first, second) or abs(first - second) <= max(larger)


# Below: arrays


def _is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor; without importing torch for those who have none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _float_planes(image: Any, name: str) -> Any:
    """``image`` as checked float (C, H, W): a numpy array, or a tensor when it is off the CPU."""
    tensor = _is_tensor(image)
    if not tensor and not isinstance(image, np.ndarray):
        raise UsageError(f"{name} must be an array or a tensor, not {type(image).__name__}")
    shape = tuple(image.shape)
    kind = f"{str(image.dtype).removeprefix('torch.')} {shape}"
    expected = "(3, H, W), (1, H, W), (4, H, W) or (H, W)"
    if not (image.is_floating_point() if tensor else image.dtype.kind == "f"):
        hint = "" if tensor else "; 8-bit arrays are uint8 (H, W, 3) or (H, W)"
        raise UsageError(
            f"{name} is {kind}; expected float {expected} in [0, 1] "
            f"(divide 8-bit values by 255){hint}"
        )
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        hint = "; pass one picture of the batch" if len(shape) == 4 else ""
        raise UsageError(f"{name} is {kind}; expected float {expected}{hint}")
    if 0 in shape:
        raise UsageError(f"{name} is empty: its shape is {shape}")
    if tensor:
        image = image.detach()
        if image.element_size() < 4:  # half precision, which numpy has not or is slow at
            image = image.float()
        low, high = (float(v) for v in image.aminmax())
        if image.device.type == "cpu":
            image = image.numpy()
    else:
        if image.dtype.itemsize < 4:
            image = image.astype(np.float32)
        low, high = float(image.min()), float(image.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also catches NaN
        raise UsageError(f"{name} must lie in [0, 1] and be finite; it spans {low:g} to {high:g}")
    return image


def _pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """A picture in any form that :func:`write_image` takes as checked uint8 (H, W, C)."""
    planes = _is_tensor(image)
    if str(getattr(image, "dtype", None)) not in ("uint8", "torch.uint8"):
        return _quantize(_float_planes(image, name))
    shape = tuple(image.shape)
    if 0 in shape:
        raise UsageError(f"{name} is empty: its shape is {shape}")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0 if planes else 2] not in (1, 3, 4)):
        form = "(C, H, W)" if planes else "(H, W, C)"
        raise UsageError(f"{name} is uint8 {shape}; expected (H, W), or {form} with C of 1, 3 or 4")
    pixels: NDArray[np.uint8] = image.detach().cpu().numpy() if planes else image
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels.transpose(1, 2, 0) if planes else pixels


def _quantize(planes: Any) -> NDArray[np.uint8]:
    """Checked float planes (C, H, W) as uint8 (H, W, C), rounded half up."""
    if _is_tensor(planes):  # off the CPU: convert there, so that a quarter of the bytes travel
        rounded = planes.mul(255).add_(0.5).clamp_(0, 255).byte()
        return np.asarray(rounded.permute(1, 2, 0).contiguous().cpu().numpy())
    pixels = np.empty((*planes.shape[1:], planes.shape[0]), dtype=np.uint8)
    for channel, rows in _bands(planes):
        pixels[rows, :, channel] = _round(planes[channel, rows])
    return pixels


def _bands(planes: NDArray[Any]) -> Iterator[tuple[int, slice]]:
    """Channel and rows of parts of (C, H, W) planes that stay in the cache."""
    height, width = planes.shape[1:]
    rows = max(1, (1 << 16) // max(1, width))
    for top in range(0, height, rows):
        for channel in range(planes.shape[0]):
            yield channel, slice(top, top + rows)


def _round(plane: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats of [0, 1], or outside by no more than the tolerance, as 0 to 255, half up."""
    levels = plane * plane.dtype.type(255)
    levels += plane.dtype.type(0.5)
    return levels.astype(np.uint8)  # truncates; -0.001 and 1.001 still land on 0 and 255


def _within(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """``size`` with its longer side reduced to ``max_side``; as it is when it is no longer."""
    longest = max(size)
    if longest <= max_side:
        return size
    first, second = (max(1, round(side * max_side / longest)) for side in size)
    return first, second


def _reduced(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, max_side: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Gray or colour and alpha with a long side of at most ``max_side``, antialiased."""
    height, width = pixels.shape[:2]
    size = (width, height) if max_side is None else _within((width, height), max_side)
    if size == (width, height):
        return pixels, alpha
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if alpha is None:
        return small, None
    # Pillow weighs colours by their alpha, so that what is hidden does not bleed into the rim.
    # Where nothing is to be seen it leaves black, but stages look at what lies there.
    whole = Image.fromarray(np.dstack([pixels, alpha])).resize(size, Image.Resampling.BICUBIC)
    both = np.asarray(whole)
    opacity = both[..., 3]
    return np.where(opacity[..., None] > 0, both[..., :3], small), opacity


def _split(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Pixels (H, W, C) as gray or colour, and their alpha (H, W) unless opaque everywhere."""
    if pixels.shape[2] != 4:
        return pixels, None
    alpha = pixels[..., 3]
    return pixels[..., :3], None if alpha.min() == 255 else alpha


def _joined(image: Any, opacity: Any) -> NDArray[np.uint8]:
    """A picture as uint8 (H, W, C), with its alpha, if it has one, as the last channel."""
    pixels = _pixels(image, "image")
    if opacity is None:
        return pixels
    alpha = _pixels(opacity, "alpha")
    if pixels.shape[2] == 4:
        raise UsageError("image has four channels, so it holds an alpha already; give one of both")
    if alpha.shape[2] != 1 or alpha.shape[:2] != pixels.shape[:2]:
        raise UsageError(
            f"alpha must have one channel and the size of the image, {pixels.shape[1]} x "
            f"{pixels.shape[0]} pixels; it has {alpha.shape[2]} and {alpha.shape[1]} x "
            f"{alpha.shape[0]}"
        )
    return np.concatenate([pixels, alpha], axis=2)


@overload
def _read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]: ...
@overload
def _read_only(array: None) -> None: ...
def _read_only(array: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """A contiguous read-only view; the caller's own array stays writable."""
    if array is None:
        return None
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


# Below: names and files


def _name_of(source: Any) -> str:
    """What messages call a path, the bytes of a file or a Pillow image."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "image in memory"
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


def _reason(error: BaseException) -> str:
    """The error in a few words: the operating system's, else its message, else its type."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _writable_target(path: str | os.PathLike[str]) -> Path:
    """The file that writing to ``path`` would replace, links resolved, after the checks."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise ImageError(f"{path} is a folder; give a file name to write to")
        check_regular(path, ImageError)
        if not target.parent.is_dir():
            raise ImageError(f"{path} cannot be written: the folder {target.parent} does not exist")
        writable = os.access(target if target.exists() else target.parent, os.W_OK)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be written: {_reason(error)}") from error
    if not writable:
        raise ImageError(f"{path} cannot be written: permission denied")
    return target


def _encode(path: Any, pixels: NDArray[np.uint8], quality: int) -> bytes:
    """The file of uint8 pixels (H, W, 1 to 4) in the format of the path's suffix."""
    form = WRITABLE[Path(path).suffix.lower()]
    try:
        return _encoded(pixels, form, quality)
    except (OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{path} could not be encoded as {form}: {_reason(error)}") from error


def _encoded(pixels: NDArray[np.uint8], form: str, quality: int) -> bytes:
    pixels = np.ascontiguousarray(pixels)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    # A gray file must not carry an RGB profile.
    icc = _srgb_profile() if pixels.shape[2] >= 3 else None
    options: dict[str, Any] = {}
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add(b"sRGB", b"\0")
        # Run-length coding of the filtered rows: on photographs 4 times as fast as the default
        # strategy of level 3, and 4 % smaller.
        options = {"pnginfo": info, "compress_level": 3, "compress_type": 3}
    elif form == "JPEG":
        # Full-resolution colour: the rim of a subject is where halved colour shows.
        options = {"quality": quality, "subsampling": 0, "icc_profile": icc}
    elif form == "WEBP":
        lossless = quality == 100
        options = {"quality": quality, "lossless": lossless, "exact": True, "method": 2}
        options["icc_profile"] = icc
    elif form == "TIFF":
        predictor = {317: 2}  # differences of neighbours: half the size on photographs
        options = {"compression": "tiff_lzw", "tiffinfo": predictor, "icc_profile": icc}
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@functools.cache
def _srgb_profile() -> bytes:
    """An sRGB profile, always the same bytes: lcms would write the time of day into it."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(data)


def _write_all(files: Iterable[tuple[str | os.PathLike[str], bytes]]) -> None:
    """Write each aside, then rename all; nothing is left when anything fails before that."""
    asides: dict[Path, Path] = {}
    path: str | os.PathLike[str] = ""
    try:
        for path, data in files:
            target = _writable_target(path)
            aside = target.with_name(f".{secrets.token_hex(8)}.part")
            asides[target] = aside
            with open(aside, "xb") as file:
                file.write(data)
            if target.exists():
                os.chmod(aside, stat.S_IMODE(target.stat().st_mode))
        for path, aside in asides.items():
            os.replace(aside, path)
    except OSError as error:
        raise ImageError(f"{path} could not be written: {_reason(error)}") from error
    finally:
        for aside in asides.values():
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
