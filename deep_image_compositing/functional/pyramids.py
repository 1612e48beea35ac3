"""Gaussian and Laplacian pyramids of any size, and the blend made of them; fusers call it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError

BLEND_LEVELS = 4
"""Default levels of ``laplacian_blend``, whose reach ``blend_reach`` is 28 pixels."""


def max_levels(height: int, width: int) -> int:
    """Levels of a pyramid whose coarsest level is the first of one pixel, the finest counted."""
    return 1 + (max(height, width) - 1).bit_length()


def gaussian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Filter and halve ``x`` again and again.

    Each level is the one before under the separable kernel (1, 4, 6, 4, 1) / 16, every second
    pixel kept, the border pixel repeated beyond the border.

    Args:
        x: (B, C, H, W), floating point.
        levels: how many, ``x`` itself included; at least 1. A level of one pixel repeats.

    Returns:
        ``levels`` tensors, finest first; sides halve rounding up: h → ceil(h / 2).

    Raises:
        UsageError: when ``levels`` is less than 1.

    Source:
        Burt and Adelson, "The Laplacian Pyramid as a Compact Image Code", 1983.
    """
    if levels < 1:
        raise UsageError(f"a pyramid has at least one level, got levels={levels}")
    pyramid = [x]
    for _ in range(levels - 1):
        pyramid.append(_halve(_halve(pyramid[-1], -2), -1))
    return pyramid


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Split ``x`` into bands of detail; ``collapse`` puts it together again.

    Args:
        x: (B, C, H, W), floating point.
        levels: how many, the low-pass rest included; at least 1.

    Returns:
        ``levels`` tensors of the sizes of ``gaussian_pyramid``, finest first: what each
        Gaussian level has beyond the next one enlarged, and last the coarsest Gaussian level.

    Raises:
        UsageError: when ``levels`` is less than 1.
    """
    pyramid = gaussian_pyramid(x, levels)
    details = [fine - _enlarge(low, fine) for fine, low in pairwise(pyramid)]
    return [*details, pyramid[-1]]


def collapse(pyramid: Sequence[Tensor]) -> Tensor:
    """Put a ``laplacian_pyramid`` together: the inverse up to rounding, at any size."""
    if not pyramid:
        raise UsageError("an empty pyramid cannot be collapsed")
    x = pyramid[-1]
    for detail in reversed(pyramid[:-1]):
        x = detail + _enlarge(x, detail)
    return x


def blend_reach(levels: int) -> int:
    """Pixels beyond which a ``laplacian_blend`` of ``levels`` leaves both inputs alone.

    A pixel of level k lies 2^k pixels from the next, and its kernels, one for every halving,
    add up to 2 · (2^k − 1) pixels to either side. Enlarging it spreads it just as far. So a change
    of alpha reaches 4 · (2^(levels − 1) − 1) pixels along either axis: 4, 12, 28, 60, 124 for 2 to
    6 levels. Diagonally that is farther, but there the kernels have all but vanished: with 4
    levels, whatever lies more than 32 pixels away adds less than a thousandth of an 8-bit step.
    """
    return 4 * (2 ** (levels - 1) - 1)


def laplacian_blend(
    foreground: Tensor, background: Tensor, alpha: Tensor, levels: int | None = None
) -> Tensor:
    """Blend two pictures band by band: coarse detail over a wide seam, fine detail over a narrow.

    Farther than ``blend_reach`` pixels from any change of ``alpha`` the result is the
    foreground (alpha 1) or the background (alpha 0), up to rounding of the dtype. With the
    default levels that is 28 pixels; more levels blend wider seams and reach further.

    Args:
        foreground: (B, C, H, W) in [0, 1].
        background: (B, C, H, W) in [0, 1].
        alpha: (B, 1, H, W) in [0, 1].
        levels: of the pyramids, at least 1 (which is plain alpha blending); None for
            ``BLEND_LEVELS``. No more than ``max_levels`` are used.

    Returns:
        (B, C, H, W) in the dtype of ``foreground``; it may leave [0, 1] a little near the seam.

    Raises:
        UsageError: when ``levels`` is less than 1.

    Source:
        Burt and Adelson, "A Multiresolution Spline with Application to Image Mosaics", 1983.
    """
    if levels is None:
        levels = BLEND_LEVELS
    if levels < 1:
        raise UsageError(f"a pyramid has at least one level, got levels={levels}")
    levels = min(levels, max_levels(*alpha.shape[-2:]))
    dtype = foreground.dtype
    if dtype in (torch.float16, torch.bfloat16):
        foreground, background, alpha = foreground.float(), background.float(), alpha.float()
    # The pyramid is linear, so the blend a·L(F) + (1−a)·L(B) of every band is L(B) + a·L(F−B),
    # and the L(B) collapse to the background itself: one colour pyramid does the work of three.
    channels = foreground.shape[1]
    stacked = gaussian_pyramid(torch.cat((foreground - background, alpha), 1), levels)
    blended = stacked[-1][:, :channels] * stacked[-1][:, channels:]
    for low, fine in pairwise(reversed(stacked)):
        difference, weight = fine[:, :channels], fine[:, channels:]
        detail = difference - _enlarge(low[:, :channels], fine)
        blended = detail * weight + _enlarge(blended, fine)
    return (background + blended).to(dtype)


# Both resamplers are sums of slices: on a CPU several times faster than a depthwise convolution,
# and nothing is multiplied by the zeros that a textbook enlargement inserts.


def _halve(x: Tensor, dim: int) -> Tensor:
    """Filter along ``dim`` with (1, 4, 6, 4, 1) / 16 and keep every second pixel from the first."""
    size = x.shape[dim]
    half = (size + 1) // 2
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, size - 1, 1)
    even = x[..., ::2, :] if dim == -2 else x[..., ::2]
    odd = x[..., 1::2, :] if dim == -2 else x[..., 1::2]
    # Neighbours −2, 0 and 2 of each kept pixel, then −1 and 1, with the border pixel repeated.
    even = torch.cat((first, even, last), dim)
    odd = torch.cat((first, odd, last) if size % 2 else (first, odd), dim)
    out = even.narrow(dim, 1, half) * (6 / 16)
    for side in (0, 1):
        out.add_(odd.narrow(dim, side, half), alpha=4 / 16)
        out.add_(even.narrow(dim, 2 * side, half), alpha=1 / 16)
    return out


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Double ``x`` to the height and width of ``like``, with the kernel of the pyramid."""
    return _double(_double(x, -1, like.shape[-1]), -2, like.shape[-2])


def _double(x: Tensor, dim: int, size: int) -> Tensor:
    """Double along ``dim``: (1, 6, 1) / 8 on each pixel, (4, 4) / 8 between two."""
    half = x.shape[dim]
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, half - 1, 1)
    padded = torch.cat((first, x, last), dim)
    between = torch.lerp(padded.narrow(dim, 0, half + 1), padded.narrow(dim, 1, half + 1), 0.5)
    before, after = between.narrow(dim, 0, half), between.narrow(dim, 1, half)
    on = torch.lerp(x, torch.lerp(before, after, 0.5), 0.5)
    return torch.stack((on, after), dim).flatten(dim - 1, dim).narrow(dim, 0, size)
