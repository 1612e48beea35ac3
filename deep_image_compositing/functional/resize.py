"""Resizing and padding of (B, C, H, W) tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.precision import widen

_FEW = 32  # cells per side up to which a matrix product is faster than indexed interpolation


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resample ``x`` (B, C, H, W), floating point or uint8, to ``size`` = (height, width).

    ``mode`` is ``bilinear`` or ``bicubic`` (which overshoots), antialiased where a side shrinks, or
    ``nearest-exact``. Half precision is computed in float32.
    """
    height, width = int(size[0]), int(size[1])
    if x.shape[-2:] == (height, width):
        return x
    if mode == "nearest-exact":
        return F.interpolate(x, (height, width), mode=mode)
    shrinks = height < x.shape[-2] or width < x.shape[-1]
    # Antialiased kernels do not support half precision on the CPU, and lose accuracy elsewhere.
    wide = widen(x)
    out = F.interpolate(wide, (height, width), mode=mode, align_corners=False, antialias=shrinks)
    return out.to(x.dtype)


def fit_long_side(
    height: int, width: int, long_side: int, *, enlarge: bool = False
) -> tuple[int, int]:
    """Size (height, width) with the same aspect ratio and a long side of at most ``long_side``.

    Smaller sizes stay unless ``enlarge``; sides are at least 1.
    """
    if long_side < 1:
        raise UsageError(f"the long side must be at least 1 pixel, got {long_side}")
    longest = max(height, width)
    if longest == long_side or (longest < long_side and not enlarge):
        return height, width
    scale = long_side / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Replicate-pad ``x`` at the bottom and right so that ``multiple`` divides both sides.

    Returns the padded tensor and the original (H, W), to crop back with ``out[..., :h, :w]``.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return x, (height, width)


def spread(grid: Tensor, size: tuple[int, int], place: tuple[float, float, float, float]) -> Tensor:
    """Interpolate a grid (B, C, gh, gw) over an image bilinearly in a region of it, (B, C, h, w).

    ``place`` locates the region, top, left, bottom and right as fractions of the image; ``size`` is
    its (h, w).
    """
    top, left, bottom, right = place
    down = _position(grid.shape[-2], size[0], top, bottom)
    across = _position(grid.shape[-1], size[1], left, right)
    if max(grid.shape[-2:]) > _FEW:
        return _interpolate(_interpolate(grid, -2, down), -1, across)
    first, last = (
        (1 - (position[:, None] - torch.arange(cells)).abs()).clamp_min(0).to(grid)
        for position, cells in ((down, grid.shape[-2]), (across, grid.shape[-1]))
    )
    return first @ grid @ last.T


def _position(cells: int, pixels: int, low: float, high: float) -> Tensor:
    """Positions (pixels,), in cells, of the pixels that span ``low`` to ``high``."""
    center = low + (high - low) * (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels
    return (center * cells - 0.5).clamp(0, cells - 1)


def _interpolate(grid: Tensor, dim: int, position: Tensor) -> Tensor:
    """Interpolate ``grid`` linearly at positions along one axis."""
    before = position.floor().clamp_max(max(0, grid.shape[dim] - 2)).long()
    after = (before + 1).clamp_max(grid.shape[dim] - 1)
    share = (position - before).to(grid)
    first, second = (grid.index_select(dim, at.to(grid.device)) for at in (before, after))
    return torch.lerp(first, second, share[:, None] if dim == -2 else share)
