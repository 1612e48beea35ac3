"""Pillow images of files of unknown origin, opened and not decoded yet.

For whoever needs no more than a header, or decodes at a scale of its own, as training does: the
formats and the limit of pixels are those of :func:`~deep_image_compositing.images.read_image`,
which everybody else calls.
"""

from __future__ import annotations

import io
import os
import re
from typing import IO

from PIL import Image

from deep_image_compositing import images


def open_picture(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """Open a picture as ``Image.open`` does, but only in a format of photographs.

    Others, such as EPS, would be handed to programs that run what they hold.

    Args:
        source: a path, or the bytes of a file.
        name: what messages call it; by default its path.

    Raises:
        ImageError: it has more pixels than the limit of ``read_image``.
        PIL.UnidentifiedImageError: it is of no such format.
        OSError: it cannot be read.
    """
    limit = images._limit(None)
    file: str | os.PathLike[str] | IO[bytes]
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or ("the picture" if isinstance(source, bytes) else os.fspath(source))
    try:
        with images._pillow(limit):
            image = Image.open(file, formats=images._known_formats())
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise images._too_large(name, int(count[0]) if count else limit + 1, limit) from error
    if image.width * image.height > limit:  # Pillow's own check is one pixel off, for odd limits
        image.close()
        raise images._too_large(name, image.width * image.height, limit)
    return image
