"""One photograph in, its subject out: ``remove`` cuts it out, or sets it before something plain."""

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
"""What the fuser sees behind a subject that is cut out."""


def remove(
    photograph: _T,
    background: ImageSource | None = None,
    *,
    mask: ImageSource | None = None,
    output: str | os.PathLike[str] | None = None,
    shadow: Shadow | str | tuple[str, Mapping[str, Any]] | None = None,
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
        shadow: what the subject throws on the ground, as ``Compositor`` takes it: under a
            transparent cut-out as well, where it is black with an opacity that is exact over white.
        compositor: that does the work; by default one with the default stages, made once.

    Raises:
        ImageError: a picture that cannot be read or written.
        UsageError: a form of picture that is not known, or ``output`` for what is no path.
        CompositingError: no subject was found.
    """
    is_path = isinstance(photograph, (str, os.PathLike))
    if output is not None and not is_path:
        raise UsageError("output names the file to write for a path; what is given is none")
    worker = compositor or _default()
    wanted, behind = ask(background, worker.shadow if shadow is None else shadow)
    if output is not None:
        check_writable(output, alpha=wanted in ("cutout", "shadowed"))
    given: Any = photograph
    result = worker(given, behind, mask)
    if shadow is not None:
        result = result.with_shadow(shadow)
    if not is_path:
        return _like(photograph, *result.picture(wanted))
    path: Any = Path(output if output is not None else Path(given).with_suffix(".cutout.png"))
    files: dict[str, Any] = {wanted: path}
    result.save(**files)
    return path


def ask(background: Any, shadow: Any = None) -> tuple[str, Any]:
    """Which output of a composite is wanted, and what stands behind the subject meanwhile.

    Both are as for ``remove``; ``UsageError`` for text that is no colour, nor a file that is there.
    """
    shaded, plain = Shadow.of(shadow) is not None, Image.new("RGB", (1, 1), NEUTRAL)
    if background is None:
        return "shadowed" if shaded else "cutout", plain
    if not isinstance(background, str):
        return "path", background
    if background == "blur":
        if shaded:
            raise UsageError(
                "a blurred background is the photograph's own, with the shadow that is in it; "
                "leave the shadow out, or take another background"
            )
        return "blurred", plain
    try:
        color = ImageColor.getrgb(background)
    except ValueError:
        if background.startswith("#"):
            raise UsageError(f"{background!r} is no colour; write it as #rrggbb") from None
        if not os.path.exists(background):
            raise UsageError(
                f"{background!r} is neither a colour, nor blur, nor a file that is there"
            ) from None
        return "path", background
    if len(color) != 3:
        raise UsageError(f"the colour {background!r} is transparent; write it as #rrggbb")
    return "path", Image.new("RGB", (1, 1), color)


@functools.cache
def _default() -> Compositor:
    from deep_image_compositing.compositor import Compositor

    return Compositor()


def _like(given: Any, picture: Any, alpha: Any) -> Any:
    """A picture and its alpha in the form in which the photograph was given."""
    if is_tensor(given):
        import torch

        from deep_image_compositing.fullsize import as_floats

        planes = [picture] if alpha is None else [picture, alpha]
        return torch.cat([as_floats(plane) for plane in planes])
    if isinstance(given, (bytes, bytearray, memoryview)):
        return encode_image(".png", picture, alpha=alpha)
    pixels = join_alpha(picture, alpha)
    return Image.fromarray(pixels) if isinstance(given, Image.Image) else pixels
