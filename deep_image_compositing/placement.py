"""Where the two photographs meet: covering a frame, and placing a subject in one; pure functions.

Pictures here are (C, H, W) tensors, uint8 or float in [0, 1]; the compositor calls this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.boxes import Box, bounding_box
from deep_image_compositing.settings import parse_position, placed_size


@dataclass(frozen=True)
class Placement:
    """A photograph of ``size`` (height, width), its first row and column at ``top`` and ``left``.

    In pixels of the frame; negative where it is cut off.
    """

    size: tuple[int, int]
    top: int
    left: int


def resample(picture: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resize ``picture`` (C, H, W), uint8 or float in [0, 1], to (height, width) ``size``.

    Antialiased where it shrinks; the dtype is kept, and uint8 resampled in 8 bits, which is fast
    and small; the same size returns ``picture`` itself. ``mode`` is ``bicubic`` or ``bilinear``.
    """
    height, width = picture.shape[-2:]
    if (height, width) == tuple(size):
        return picture
    shrinks = size[0] < height or size[1] < width
    out = F.interpolate(picture[None], size, mode=mode, align_corners=False, antialias=shrinks)[0]
    return out.clamp_(0, 1) if out.is_floating_point() else out


def cover(background: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale ``background`` (C, H, W) until it covers a frame of ``size``, and crop it evenly.

    Of that size already, it comes back bit for bit. The crop is made to the pixel of the source,
    before scaling, so a source only a few pixels large may be stretched by a fraction of one.
    """
    height, width = background.shape[-2:]
    frame_height, frame_width = size
    kept_height = min(height, max(1, round(width * frame_height / frame_width)))
    kept_width = min(width, max(1, round(height * frame_width / frame_height)))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    kept = background[:, top : top + kept_height, left : left + kept_width]
    return resample(kept, size)


def subject_box(alpha: Tensor, threshold: float = 0.5) -> Box:
    """The smallest rows and columns that hold all of ``alpha`` (1, H, W) above ``threshold``.

    Where nothing exceeds the threshold, half of the largest alpha takes its place; for an alpha of
    zeros the box is the whole picture.
    """
    plane = alpha[0]
    threshold = min(threshold, float(plane.max()) / 2)
    box = bounding_box(plane > threshold)
    return box or (slice(0, plane.shape[0]), slice(0, plane.shape[1]))


def place(
    alpha: Tensor, frame: tuple[int, int], scale: float, position: tuple[float, float]
) -> Placement:
    """Where the photograph of the subject under ``alpha`` (1, H, W) lies in a frame.

    At ``scale`` 1 it just fits. ``position`` (x, y) is that of the subject's bounding box, from 0,
    the left or top edge of the frame, to 1, the right or bottom. Raises ``UsageError`` for another
    position, or a scale as ``placed_size``.
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
    """Resize ``picture`` (C, H, W) and lay it into an empty frame as ``placement`` says.

    What it leaves free is filled with zeros (for masks and alphas), or at an ``edge`` by repeating
    its border (for photographs, so that a network sees plausible colours).
    """
    mode = "bicubic" if edge else "bilinear"
    resized = resample(picture, placement.size, mode)
    height, width = placement.size
    rows = torch.arange(frame[0], device=picture.device) - placement.top
    columns = torch.arange(frame[1], device=picture.device) - placement.left
    out = resized[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
    if not edge:
        out[:, (rows < 0) | (rows >= height)] = 0
        out[:, :, (columns < 0) | (columns >= width)] = 0
    return out
