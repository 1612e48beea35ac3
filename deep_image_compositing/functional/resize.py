"""Resizing and padding of (B, C, H, W) tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.precision import widen


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resample ``x`` (B, C, H, W), floating point, to ``size`` = (height, width).

    ``mode`` is ``bilinear``, ``bicubic``, ``nearest-exact`` or ``area``; pixel centres keep their
    place. The first two filter against aliasing when a side shrinks, and only then; ``bicubic`` may
    overshoot the range of ``x``. Half precision is computed in float32.
    """
    height, width = int(size[0]), int(size[1])
    if x.shape[-2:] == (height, width):
        return x
    if mode in ("nearest-exact", "area"):
        return F.interpolate(x, (height, width), mode=mode)
    shrinks = height < x.shape[-2] or width < x.shape[-1]
    # The antialiased kernels lack half precision on the CPU, and lose half of it elsewhere.
    wide = widen(x)
    out = F.interpolate(wide, (height, width), mode=mode, align_corners=False, antialias=shrinks)
    return out.to(x.dtype)


def fit_long_side(
    height: int, width: int, long_side: int, *, enlarge: bool = False
) -> tuple[int, int]:
    """Size (height, width) whose longer side is at most ``long_side``, with the aspect kept.

    A smaller picture keeps its size unless ``enlarge``; no side falls below 1.
    """
    if long_side < 1:
        raise UsageError(f"the long side must be at least 1 pixel, got {long_side}")
    longest = max(height, width)
    if longest == long_side or (longest < long_side and not enlarge):
        return height, width
    scale = long_side / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Repeat the border of ``x`` at the bottom and right until both sides divide by ``multiple``.

    Returns the padded tensor and the original (H, W): crop back with ``out[..., :h, :w]``.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return x, (height, width)


def spread(grid: Tensor, size: tuple[int, int], place: tuple[float, float, float, float]) -> Tensor:
    """A grid (B, C, gh, gw) over a picture, at the pixels of a part of it, bilinear.

    ``place`` is the part: top, left, bottom and right as shares of the picture. Returns (B, C, h,
    w), where ``size`` = (h, w) is that of the part.
    """
    top, left, bottom, right = place
    down = _weights(grid.shape[-2], size[0], top, bottom).to(grid)
    across = _weights(grid.shape[-1], size[1], left, right).to(grid)
    return torch.einsum("hy,bcyx,wx->bchw", down, grid, across)


def _weights(cells: int, pixels: int, low: float, high: float) -> Tensor:
    """(pixels, cells) shares of the cells in pixels that lie from ``low`` to ``high``."""
    center = low + (high - low) * (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels
    position = (center * cells - 0.5).clamp(0, cells - 1)
    return (1 - (position[:, None] - torch.arange(cells)).abs()).clamp_min(0).float()
