"""One photograph in, its subject out: ``remove`` cuts it out, or sets it before something plain."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageColor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.images import encode_image, write_image

if TYPE_CHECKING:
    from deep_image_compositing.composite import Composite
    from deep_image_compositing.compositor import Compositor
    from deep_image_compositing.images import ImageSource

_T = TypeVar("_T")

NEUTRAL = (128, 128, 128)
"""What the fuser sees behind a subject that is cut out."""

BLUR_SIDE = 384
"""Long side in pixels at which a background is blurred."""

BLUR = 0.02
"""Radius of that blur, as a share of the long side."""


def remove(
    photograph: _T,
    background: ImageSource | None = None,
    *,
    mask: ImageSource | None = None,
    output: str | os.PathLike[str] | None = None,
    compositor: Compositor | None = None,
) -> _T:
    """The subject of a photograph without its background, in the form of what was given.

    Args:
        photograph: bytes of a picture file (the answer is a PNG file's); a path (the answer is the
            path of the file written); a Pillow image; a uint8 array (H, W, 3); or a float tensor
            (3, H, W) in [0, 1].
        background: None for a transparent cut-out with clean straight colour (RGBA); ``blur`` for
            the photograph's own, blurred, without the subject's colours in it; a colour, as
            ``white`` or ``#rrggbb``; or another photograph, in any form ``Compositor`` takes.
        mask: where the subject is, instead of the segmenter's answer.
        output: file to write, for a path; by default ``NAME.cutout.png`` beside the photograph.
        compositor: that does the work; by default one with the default stages, made once.

    Raises:
        ImageError: a picture that cannot be read or written.
        UsageError: a form of picture that is not known, or ``output`` for what is no path.
        CompositingError: no subject was found.
    """
    is_path = isinstance(photograph, (str, os.PathLike))
    if output is not None and not is_path:
        raise UsageError("output names the file to write for a path; what is given is none")
    made = cut_out(photograph, background, mask=mask, compositor=compositor)
    return _like(photograph, *made, output)


def cut_out(
    photograph: Any,
    background: ImageSource | None = None,
    *,
    mask: ImageSource | None = None,
    compositor: Compositor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What ``remove`` makes: pixels (3, H, W), uint8, and alpha (1, H, W), None where opaque."""
    work = compositor or _default()
    color = plain_color(background)
    behind: Any = background
    if background is None or background == "blur":
        color = NEUTRAL
    if color is not None:
        behind = Image.new("RGB", (1, 1), color)
    result = work(photograph, behind, mask)
    if isinstance(background, str) and background == "blur":
        return over_blurred(result), None
    if background is None:
        return result.cutout_pixels, result.cutout_levels
    return result.composite_pixels, None


def plain_color(background: Any) -> tuple[int, int, int] | None:
    """The colour that a background's text names, None where it names none.

    Raises:
        UsageError: it begins with # and is no colour.
    """
    if not isinstance(background, str):
        return None
    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError:
        if background.startswith("#"):
            raise UsageError(f"{background!r} is no colour; write it as #rrggbb") from None
        return None


def over_blurred(result: Composite) -> torch.Tensor:
    """The subject over its own photograph's blurred background, (3, H, W) uint8."""
    from deep_image_compositing.functional.compose import over
    from deep_image_compositing.functional.foreground import box_filter, multilevel_layers
    from deep_image_compositing.functional.precision import to_bytes
    from deep_image_compositing.functional.resize import fit_long_side, resize

    size = fit_long_side(*result.size, BLUR_SIDE)
    small = resize(result.foreground[None], size).clamp(0, 1)
    alpha = resize(result.cutout_alpha[None], size).clamp(0, 1)
    behind = multilevel_layers(small, alpha)[1]
    for _ in range(3):  # three boxes are almost a Gaussian
        behind = box_filter(behind, max(1, round(BLUR * max(size))))
    color = result.cutout_pixels[None] / 255
    return to_bytes(over(color, result.cutout_alpha[None], resize(behind, result.size))[0])


@functools.cache
def _default() -> Compositor:
    from deep_image_compositing.compositor import Compositor

    return Compositor()


def _like(given: Any, pixels: torch.Tensor, levels: torch.Tensor | None, output: Any) -> Any:
    """Pixels and alpha in the form in which the photograph was given."""
    if isinstance(given, (str, os.PathLike)):
        path = Path(output) if output is not None else Path(given).with_suffix(".cutout.png")
        write_image(path, pixels, alpha=levels)
        return path
    if isinstance(given, bytes):
        return encode_image(".png", pixels, alpha=levels)
    if isinstance(given, torch.Tensor):
        from deep_image_compositing.composite import as_floats

        color = pixels / 255
        return color if levels is None else torch.cat([color, as_floats(levels)])
    picture = Image.open(io.BytesIO(encode_image(".png", pixels, alpha=levels)))
    return picture if isinstance(given, Image.Image) else np.asarray(picture)
