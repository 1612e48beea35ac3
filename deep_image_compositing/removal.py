"""``remove``: cut out the subject of a photograph, or replace its background."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image, ImageColor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.images import check_writable, encode_image
from deep_image_compositing.images.arrays import is_tensor, join_alpha
from deep_image_compositing.settings import Shadow

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor
    from deep_image_compositing.images import ImageSource

_T = TypeVar("_T")

NEUTRAL = (128, 128, 128)
"""Background colour that the fuser sees for a transparent cut-out."""


def remove(
    photograph: _T,
    background: ImageSource | None = None,
    *,
    mask: ImageSource | None = None,
    output: str | os.PathLike[str] | None = None,
    shadow: Shadow | str | tuple[str, Mapping[str, Any]] | None = None,
    compositor: Compositor | None = None,
) -> _T:
    """Remove or replace the background of a photograph.

    Args:
        photograph: the bytes of a picture file (the result is a PNG file's), a path (the result is
            the path of the file written), a Pillow image, a uint8 array (H, W, 3), or a float
            tensor (3, H, W) in [0, 1]. The result has the same type.
        background: None for a transparent cut-out (RGBA, straight colour without the old
            background's); ``blur`` to blur the photograph's own background, without the subject's
            colours; a colour such as ``white`` or ``#rrggbb``; or another photograph, in any form
            that ``Compositor`` takes.
        mask: the subject's mask, instead of running the segmenter.
        output: file to write, if ``photograph`` is a path; default ``NAME.cutout.png`` next to it.
        shadow: as for ``Compositor``. Under a transparent cut-out, it is black with an opacity that
            is exact over white.
        compositor: compositor to use; default one with the default stages, which is cached.

    Raises:
        ImageError: a picture cannot be read or written.
        UsageError: an unsupported type, or ``output`` without a path.
        CompositingError: no subject was found.
    """
    is_path = isinstance(photograph, (str, os.PathLike))
    if output is not None and not is_path:
        raise UsageError(
            "output names the file to write if the photograph is a path, but it is "
            f"{type(photograph).__name__}; leave it out"
        )
    compositor = compositor or _default_compositor()
    kind, behind = ask(background, compositor.shadow if shadow is None else shadow)
    if output is not None:
        check_writable(output, alpha=kind in ("cutout", "shadowed"))
    source: Any = photograph
    result = compositor(source, behind, mask)
    if shadow is not None:
        result = result.with_shadow(shadow)
    if not is_path:
        return _convert_like(photograph, *result.picture(kind))
    path: Any = Path(output if output is not None else Path(source).with_suffix(".cutout.png"))
    files: dict[str, Any] = {kind: path}
    result.save(**files)
    return path


def ask(background: Any, shadow: Any = None) -> tuple[str, Any]:
    """Which of ``OUTPUTS`` to take from the composite, and the background to composite with.

    The arguments are as for ``remove``. Raises ``UsageError`` for a text that is neither a colour
    nor an existing file.
    """
    has_shadow, neutral = Shadow.of(shadow) is not None, Image.new("RGB", (1, 1), NEUTRAL)
    if background is None:
        return "shadowed" if has_shadow else "cutout", neutral
    if not isinstance(background, str):
        return "path", background
    if background == "blur":
        if has_shadow:
            raise UsageError(
                "a blurred background already has the photograph's own shadow; leave the shadow "
                "out, or choose another background"
            )
        return "blurred", neutral
    try:
        color = ImageColor.getrgb(background)
    except ValueError:
        if background.startswith("#"):
            raise UsageError(f"{background!r} is no colour; write it as #rrggbb") from None
        if not os.path.exists(background):
            raise UsageError(
                f"{background!r} is neither a colour, nor blur, nor an existing file"
            ) from None
        return "path", background
    if len(color) != 3:
        raise UsageError(f"the colour {background!r} is transparent; write it as #rrggbb")
    return "path", Image.new("RGB", (1, 1), color)


@functools.cache
def _default_compositor() -> Compositor:
    from deep_image_compositing.compositor import Compositor

    return Compositor()


def _convert_like(source: Any, picture: Any, alpha: Any) -> Any:
    """Convert a picture and its alpha to the type of ``source``."""
    if is_tensor(source):
        import torch

        from deep_image_compositing.fullsize import as_floats

        planes = [picture] if alpha is None else [picture, alpha]
        return torch.cat([as_floats(plane) for plane in planes])
    if isinstance(source, (bytes, bytearray, memoryview)):
        return encode_image(".png", picture, alpha=alpha)
    pixels = join_alpha(picture, alpha)
    return Image.fromarray(pixels) if isinstance(source, Image.Image) else pixels
