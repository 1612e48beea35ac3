"""Mattes with straight colour: reading them, and estimating the colour where it is not given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from deep_image_compositing.data import folders
from deep_image_compositing.data.folders import Pair, read_pair
from deep_image_compositing.errors import MissingExtraError
from deep_image_compositing.functional.foreground import (
    blur_fusion_foreground,
    multilevel_foreground,
)
from deep_image_compositing.images import to_tensor, to_uint8


@dataclass(frozen=True)
class Matte:
    """A subject: straight colour (RGB image) and alpha (L image) of one size."""

    color: Image.Image
    alpha: Image.Image


def read_matte(pair: Pair) -> Matte:
    """Read a pair as a matte; the colour of a photograph with an alpha is estimated."""
    image, alpha = read_pair(pair)
    return Matte(image if pair.label is None else estimate_color(image, alpha), alpha)


def read_color(pair: Pair) -> Image.Image:
    """Straight colour (RGB) of a matte; those read lately stay in memory."""
    if pair.label is None:
        return read_pair(pair)[0]
    return folders.DECODED.get(("color", pair), lambda: read_matte(pair).color)


def estimate_color(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Straight colour of the subject of ``image`` under ``alpha``, both of one size.

    By the multi-level method (Germer et al., ICPR 2020) of pymatting, without it by blur fusion.
    """
    pixels, opacity = (to_tensor(np.asarray(picture))[None] for picture in (image, alpha))
    try:
        color = multilevel_foreground(pixels, opacity)
    except MissingExtraError:
        with torch.inference_mode():
            color, _ = blur_fusion_foreground(pixels, opacity)
    return Image.fromarray(to_uint8(color[0]))
