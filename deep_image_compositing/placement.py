"""Fit a background to a frame, and place a subject in one; the compositor calls this module.

Pictures are (C, H, W) tensors, uint8 or float in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_image_compositing.functional.boxes import Box, bounding_box
from deep_image_compositing.functional.resize import resize
from deep_image_compositing.settings import parse_position, placed_size


@dataclass(frozen=True)
class Placement:
    """Position and ``size`` (height, width) of a photograph in a frame, in pixels of the frame.

    ``top`` and ``left`` are negative if the photograph is cut off there.
    """

    size: tuple[int, int]
    top: int
    left: int


def resample(picture: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resize ``picture`` (C, H, W), uint8 or float in [0, 1], to (height, width) ``size``.

    Downscaling is antialiased. The dtype is kept, without conversion to float; ``picture`` itself
    is returned if it has that size already. ``mode`` is ``bicubic`` or ``bilinear``.
    """
    if picture.shape[-2:] == tuple(size):
        return picture
    out = resize(picture[None], size, mode)[0]
    return out.clamp_(0, 1) if out.is_floating_point() else out


def cover(background: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale ``background`` (C, H, W) to cover a frame of ``size`` and crop it to the centre.

    Cropping precedes scaling and is rounded to pixels of the source, which may distort sources of
    only a few pixels slightly. A background of that size is returned unchanged.
    """
    height, width = background.shape[-2:]
    frame_height, frame_width = size
    crop_height = min(height, max(1, round(width * frame_height / frame_width)))
    crop_width = min(width, max(1, round(height * frame_width / frame_height)))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return resample(background[:, top : top + crop_height, left : left + crop_width], size)


def subject_box(alpha: Tensor, threshold: float = 0.5) -> Box:
    """Bounding box of ``alpha`` (1, H, W) above ``threshold``, or above half its maximum if lower.

    The whole picture if alpha is 0 everywhere.
    """
    threshold = min(threshold, float(alpha.max()) / 2)
    box = bounding_box(alpha[0] > threshold)
    return box or (slice(0, alpha.shape[1]), slice(0, alpha.shape[2]))


def place(
    alpha: Tensor, frame: tuple[int, int], scale: float, position: tuple[float, float]
) -> Placement:
    """Place a photograph whose subject has ``alpha`` (1, H, W) in a frame of (height, width).

    At ``scale`` 1 the photograph just fits. ``position`` (x, y) is the subject's bounding box's,
    from 0, at the left or top edge of the frame, to 1, at the right or bottom. Raises
    ``UsageError`` for an invalid position or scale; see ``placed_size``.
    """
    x, y = parse_position(position)
    size = placed_size((alpha.shape[-2], alpha.shape[-1]), frame, scale)
    rows, columns = subject_box(resample(alpha, size, "bilinear"))
    return Placement(
        size,
        top=round(y * (frame[0] - (rows.stop - rows.start))) - rows.start,
        left=round(x * (frame[1] - (columns.stop - columns.start))) - columns.start,
    )


def paste(picture: Tensor, placement: Placement, frame: tuple[int, int], *, edge: bool) -> Tensor:
    """Resize ``picture`` (C, H, W) and put it into an empty frame at ``placement``.

    The rest of the frame is 0 (for masks and alphas) or, with ``edge``, replicates the picture's
    border (for photographs, so that networks see plausible colours).
    """
    resized = resample(picture, placement.size, "bicubic" if edge else "bilinear")
    height, width = placement.size
    rows = torch.arange(frame[0], device=picture.device) - placement.top
    columns = torch.arange(frame[1], device=picture.device) - placement.left
    out = resized[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
    if not edge:
        out[:, (rows < 0) | (rows >= height)] = 0
        out[:, :, (columns < 0) | (columns >= width)] = 0
    return out
