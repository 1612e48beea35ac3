"""Trimaps: the width of the unknown band, what is known, where the unknown lies."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.boxes import Box, bounding_box, grow
from deep_image_compositing.functional.resize import resize

BAND = 0.02  # half width of the unknown band as a share of the long side: 10 pixels at 512


def pixels_of_share(share: float, size: tuple[int, int]) -> int:
    """A ``share`` of the long side of ``size`` (height, width) in pixels, at least 1 unless 0.

    Raises ``UsageError`` when the share lies outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise UsageError(f"a share of the picture's long side lies in [0, 1], got {share}")
    return max(1, round(share * max(size))) if share else 0


def trimap_from_levels(gray: Tensor, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Read ``gray`` (B, 1, H, W) in [0, 1] as a trimap of the same shape in {0, 0.5, 1}.

    Up to ``low`` a pixel is background, from ``high`` on subject, between them unknown.
    """
    return ((gray > low).to(gray.dtype) + (gray >= high).to(gray.dtype)) / 2


def resize_trimap(trimap: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample ``trimap`` (B, 1, H, W) to (height, width) ``size``; mixed pixels are unknown."""
    return trimap_from_levels(resize(trimap, size), 0.01, 0.99)


def unknown_box(trimap: Tensor, margin: int) -> Box | None:
    """The box around what is unknown in ``trimap`` (H, W) and ``margin`` pixels more, or None."""
    box = bounding_box(trimap == 0.5)
    return None if box is None else grow(box, margin, (trimap.shape[0], trimap.shape[1]))


def missing_class(trimap: Tensor) -> str:
    """Which known class ``trimap`` lacks, in words; empty when it has both."""
    subject, background = bool(torch.any(trimap == 1)), bool(torch.any(trimap == 0))
    if subject and background:
        return ""
    if subject:
        return "known background"
    return "known subject" if background else "known pixel"
