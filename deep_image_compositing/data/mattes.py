"""Mattes with straight colour: reading them, and estimating the colour where it is not given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from deep_image_compositing.data.folders import Pair, read_pair
from deep_image_compositing.errors import MissingExtraError
from deep_image_compositing.functional.foreground import (
    blur_fusion_foreground,
    multilevel_foreground,
)


@dataclass(frozen=True)
class Matte:
    """A subject: straight colour (RGB image) and alpha (L image) of one size."""

    color: Image.Image
    alpha: Image.Image


def read_matte(pair: Pair) -> Matte:
    """Read a pair as a matte.

    The straight colour of an RGBA cut-out is its own. That of a photograph with an alpha is
    estimated: by pymatting's multi-level method (Germer et al., ICPR 2020) where it is installed,
    otherwise by blur fusion.

    Raises:
        ImageError: when a file cannot be read.
    """
    image, alpha = read_pair(pair)
    if pair.label is None:
        return Matte(image, alpha)
    return Matte(estimate_color(image, alpha), alpha)


def estimate_color(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Straight colour of the subject of ``image`` under ``alpha``, both of one size."""
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
    opacity = torch.from_numpy(np.asarray(alpha, np.float32) / 255)[None, None]
    try:
        color = multilevel_foreground(pixels, opacity)
    except MissingExtraError:
        with torch.inference_mode():
            color, _ = blur_fusion_foreground(pixels, opacity)
    estimate = color[0].permute(1, 2, 0).numpy()
    return Image.fromarray((np.clip(estimate, 0, 1) * 255 + 0.5).astype(np.uint8))
