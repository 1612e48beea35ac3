"""Gaussian pyramids and Laplacian blending for images of any size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from deep_image_compositing.functional.precision import widen

BLEND_LEVELS = 4  # default levels of ``laplacian_blend``, with a reach of 28 pixels


def max_levels(height: int, width: int) -> int:
    """Number of pyramid levels from full size to a single pixel."""
    return 1 + (max(height, width) - 1).bit_length()


def gaussian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Gaussian pyramid of ``x`` (B, C, H, W), finest level first (Burt and Adelson, 1983).

    The kernel is (1, 4, 6, 4, 1) / 16 along both axes, with repeated border pixels. Sides halve,
    rounding up; further levels repeat a single pixel.
    """
    pyramid = [x]
    for _ in range(levels - 1):
        pyramid.append(_halve(_halve(pyramid[-1], -2), -1))
    return pyramid


def laplacian_blend(
    foreground: Tensor, background: Tensor, alpha: Tensor, levels: int = BLEND_LEVELS
) -> Tensor:
    """Blend two images in frequency bands: a wide seam for coarse detail, a narrow one for fine.

    Farther than 4 · (2^(levels − 1) − 1) pixels from any change of ``alpha`` the result equals one
    of them, up to rounding; near the seam it may slightly leave [0, 1]. One level is alpha
    blending; at most ``max_levels`` are used. Source: Burt and Adelson, "A Multiresolution Spline
    with Application to Image Mosaics", 1983.
    """
    levels = min(levels, max_levels(*alpha.shape[-2:]))
    dtype = foreground.dtype
    foreground, background, alpha = (widen(x) for x in (foreground, background, alpha))
    # By linearity, the blend a·L(F) + (1−a)·L(B) of a band is L(B) + a·L(F−B), and the bands L(B)
    # collapse to the background, so a single colour pyramid is enough.
    channels = foreground.shape[1]
    stacked = gaussian_pyramid(torch.cat((foreground - background, alpha), 1), levels)
    blended = stacked[-1][:, :channels] * stacked[-1][:, channels:]
    for low, fine in pairwise(reversed(stacked)):
        difference, weight = fine[:, :channels], fine[:, channels:]
        detail = difference - _enlarge(low[:, :channels], fine)
        blended = detail * weight + _enlarge(blended, fine)
    return (background + blended).to(dtype)


# Both resamplers are sums of slices, several times faster on a CPU than depthwise convolutions,
# and need no multiplication by inserted zeros.


def _halve(x: Tensor, dim: int) -> Tensor:
    """Filter along ``dim`` with (1, 4, 6, 4, 1) / 16 and keep every second pixel."""
    size = x.shape[dim]
    half = (size + 1) // 2
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, size - 1, 1)
    even = x[..., ::2, :] if dim == -2 else x[..., ::2]
    odd = x[..., 1::2, :] if dim == -2 else x[..., 1::2]
    # Neighbours −2, 0 and 2 of each output pixel, then −1 and 1, with repeated border pixels.
    even = torch.cat((first, even, last), dim)
    odd = torch.cat((first, odd, last) if size % 2 else (first, odd), dim)
    out = even.narrow(dim, 1, half) * (6 / 16)
    for side in (0, 1):
        out.add_(odd.narrow(dim, side, half), alpha=4 / 16)
        out.add_(even.narrow(dim, 2 * side, half), alpha=1 / 16)
    return out


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Upsample ``x`` by 2 to the height and width of ``like``, with the pyramid's kernel."""
    return _double(_double(x, -1, like.shape[-1]), -2, like.shape[-2])


def _double(x: Tensor, dim: int, size: int) -> Tensor:
    """Upsample by 2 along ``dim``: (1, 6, 1) / 8 on input pixels, (4, 4) / 8 between them."""
    half = x.shape[dim]
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, half - 1, 1)
    padded = torch.cat((first, x, last), dim)
    between = torch.lerp(padded.narrow(dim, 0, half + 1), padded.narrow(dim, 1, half + 1), 0.5)
    before, after = between.narrow(dim, 0, half), between.narrow(dim, 1, half)
    on = torch.lerp(x, torch.lerp(before, after, 0.5), 0.5)
    return torch.stack((on, after), dim).flatten(dim - 1, dim).narrow(dim, 0, size)
