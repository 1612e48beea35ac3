"""Conversion from any mode, bit depth and colour profile to 8-bit sRGB or gray."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from deep_image_compositing.errors import ImageError, UsageError, reason_of
from deep_image_compositing.images.arrays import TOLERANCE

BINARY_NOTE = "holds only the values 0 and 1; they are read as 0 and 255"

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


def is_wide(image: Image.Image) -> bool:
    """Whether the mode holds one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def separate_alpha(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """Split an image into an opaque one and its alpha (H, W), None where fully opaque.

    The opaque image has mode L, RGB, CMYK or LAB, or a wide mode.
    """
    if image.mode == "La":
        image = image.convert("LA")
    alpha: NDArray[np.uint8] | None = None
    if is_wide(image):
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


def to_srgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    """Convert an opaque 8-bit image of mode L, RGB, CMYK or LAB to sRGB."""
    if icc:
        try:
            return _convert_profile(image, icc)
        except UsageError as error:
            notes.append(str(error))
        except Exception as error:  # lcms raises several types and is optional in Pillow
            reason = reason_of(error)
            notes.append(f"has a colour profile that cannot be used, which is ignored ({reason})")
    if image.mode == "CMYK":
        notes.append("is CMYK without a usable colour profile; its colours are approximate")
    return plain_rgb(image)


def plain_rgb(image: Image.Image) -> Image.Image:
    """Convert an opaque image to RGB, ignoring its profile."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]
    return image.convert("RGB")


def _convert_profile(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert from a profile to sRGB with the relative colorimetric intent.

    A profile that changes no colour by more than one level is sRGB up to rounding, so the pixels
    are left as they are.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
    if mode == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if mode != image.mode:
        raise UsageError(
            f"has a colour profile for {space} in a {image.mode} image, which is ignored"
        )
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode == "L":  # lcms optimization truncates dark levels; 256 levels are fast without
        flags |= ImageCms.Flags.NOOPTIMIZE
    srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(profile, srgb, mode, "RGB", intent, flags)
    if mode in ("RGB", "L"):
        probe = Image.fromarray(_probe() if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        converted = np.asarray(ImageCms.applyTransform(probe, transform))
        difference = np.asarray(probe.convert("RGB"), dtype=np.int16) - converted
        if np.abs(difference).max() <= 1:
            return image.convert("RGB")
        if mode == "L":
            return Image.fromarray(converted[0][np.asarray(image)])
    return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]


@functools.cache
def _probe() -> NDArray[np.uint8]:
    """A lattice of 9 levels per channel and all grays, as uint8 (1, 985, 3)."""
    levels = np.linspace(0, 255, 9).round()
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    grays = np.arange(256)[:, None].repeat(3, axis=1)
    return np.concatenate([lattice, grays]).astype(np.uint8)[None]


def wide_gray(
    image: Image.Image, name: str, notes: list[str], *, binary: bool = False
) -> NDArray[np.float32]:
    """Scale the gray values of a mode I;16, I or F image to float32 (H, W) in [0, 1].

    Modes I and F carry no scale, so the smallest common one that fits the values is used, with a
    note unless it is [0, 1]. With ``binary``, an integer image of only 0 and 1 is a binary mask.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        full = float(2**bits - 1) if 8 < bits <= 16 and high < 2**bits else 65535.0
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        full = 65535.0
    else:
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
        tolerance = TOLERANCE if image.mode == "F" else 0.0
        if not (low >= -tolerance and high <= scales[-1]):  # also catches NaN
            raise ImageError(
                f"{name} stores gray values from {low:g} to {high:g}; "
                f"expected finite ones between 0 and {scales[-1]:g}"
            )
        full = next(scale for scale in scales if high <= scale + tolerance)
        if full > 1 and not (binary and image.mode == "I" and high <= 1):
            notes.append(
                f"stores wide gray values up to {high:g}; they are read on a scale of 0 to {full:g}"
            )
    if binary and image.mode != "F" and high == 1:
        notes.append(BINARY_NOTE)
        full = 1.0
    gray = np.divide(values, np.float32(full), dtype=np.float32).clip(0.0, 1.0)
    inverted = image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0  # WhiteIsZero
    return 1 - gray if inverted else gray
