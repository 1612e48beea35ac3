"""Estimation of the subject's true colour along its rim, without the old background."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.precision import widen

_EPSILON = 1e-5


def box_filter(x: Tensor, radius: int) -> Tensor:
    """Mean of ``x`` (B, C, H, W) over squares of ``2 · radius + 1`` pixels, cropped at the border.

    The cost grows with the logarithm of the radius. Sums are pairwise, thus accurate in float32.
    """
    if radius == 0:
        return x
    dtype = x.dtype
    x = widen(x)
    rows, columns = x.new_ones(x.shape[-2], 1), x.new_ones(1, x.shape[-1])
    count = _line_sum(rows, radius, -2) * _line_sum(columns, radius, -1)
    return (window_sum(x, radius) / count).to(dtype)


def window_sum(x: Tensor, radius: int) -> Tensor:
    """Sum of ``x`` (B, C, H, W) over squares of ``2 · radius + 1`` pixels, zero outside."""
    return _line_sum(_line_sum(x, radius, -2), radius, -1)


def blur_fusion_foreground(
    image: Tensor, alpha: Tensor, radii: Sequence[int] = (90, 6)
) -> tuple[Tensor, Tensor]:
    """Estimate the colours of subject and old background, (B, 3, H, W) each, by blur fusion.

    Each layer's colour is its mean over a window, weighted by that layer's opacity; alpha times the
    residual of the compositing equation is added to the subject. One pass for each of ``radii``.
    The subject's colour is bit-identical to the image where alpha is 1, the background's where it
    is 0. Source: Forte, ICIP 2021.
    """
    dtype = image.dtype
    picture, opacity = widen(image), widen(alpha)
    subject = surroundings = picture
    for radius in radii:
        subject, surroundings = _blur_fusion(picture, opacity, subject, surroundings, radius)
    subject = torch.where(opacity == 1, picture, subject)
    surroundings = torch.where(opacity == 0, picture, surroundings)
    return subject.to(dtype), surroundings.to(dtype)


def multilevel_foreground(image: Tensor, alpha: Tensor) -> Tensor:
    """Estimate the subject's colour by pymatting's multi-level method, on the CPU.

    Bit-identical to the image where alpha is 1. Raises ``MissingExtraError`` without pymatting.
    Source: Germer et al., "Fast Multi-Level Foreground Estimation", ICPR 2020.
    """
    pymatting = import_extra("pymatting", "multi-level colour")
    height, width = image.shape[-2:]
    # pymatting divides by the number of levels, which is 0 for a single pixel.
    padding = (0, int(width == 1), 0, int(height == 1))
    pictures, opacities = (
        F.pad(x.detach().float(), padding, mode="replicate").cpu().permute(0, 2, 3, 1).numpy()
        for x in (image, alpha)
    )
    colors = [
        torch.from_numpy(pymatting.estimate_foreground_ml(np.ascontiguousarray(p), a[..., 0]))
        for p, a in zip(pictures, opacities, strict=True)
    ]
    color = torch.stack(colors).permute(0, 3, 1, 2)[..., :height, :width].to(image)
    return torch.where(alpha == 1, image, color)


def multilevel_layers(
    image: Tensor, alpha: Tensor, *, smoothness: float = 0.1, iterations: int = 2
) -> tuple[Tensor, Tensor]:
    """Estimate the colours of subject and old background from coarse to fine, on the device.

    Solves the compositing equation with both colours kept close to their neighbours', by
    ``smoothness`` times the change of alpha (1 in the paper; less follows the photograph further
    into the rim) and everywhere slightly. Each level starts from the coarser one and is relaxed 10
    times up to 32 pixels, ``iterations`` times beyond. The subject's colour is bit-identical to the
    image where alpha is 1, the background's where it is 0.
    Source: as for ``multilevel_foreground``.
    """
    dtype = image.dtype
    picture, opacity = widen(image), widen(alpha)
    height, width = alpha.shape[-2:]
    levels = max(1, math.ceil(math.log2(max(height, width))))
    colors = torch.cat([_mean_color(picture, opacity), _mean_color(picture, 1 - opacity)], 1)
    for level in range(levels + 1):
        size = (round(height ** (level / levels)), round(width ** (level / levels)))
        whole = size == (height, width)
        x = picture if whole else F.interpolate(picture, size, mode="nearest-exact")
        a = opacity if whole else F.interpolate(opacity, size, mode="nearest-exact")
        colors = F.interpolate(colors, size, mode="nearest-exact")
        colors = _relax(x, a, colors, smoothness, 10 if max(size) <= 32 else iterations)
    subject = torch.where(opacity == 1, picture, colors[:, :3])
    surroundings = torch.where(opacity == 0, picture, colors[:, 3:])
    return subject.to(dtype), surroundings.to(dtype)


def _mean_color(image: Tensor, weight: Tensor) -> Tensor:
    """Mean colour (B, 3, 1, 1) of pixels with a weight above 0.9, or of all if there are none."""
    sure = (weight > 0.9).to(image.dtype)
    count = sure.sum((2, 3), keepdim=True)
    mean = (image * sure).sum((2, 3), keepdim=True) / count.clamp_min(1)
    return torch.where(count > 0, mean, image.mean((2, 3), keepdim=True))


def _relax(image: Tensor, alpha: Tensor, colors: Tensor, smoothness: float, steps: int) -> Tensor:
    """Both layers' colours (B, 6, H, W) after red-black relaxation at one level."""
    right = _EPSILON + smoothness * (alpha[..., 1:] - alpha[..., :-1]).abs()
    below = _EPSILON + smoothness * (alpha[..., 1:, :] - alpha[..., :-1, :]).abs()
    beta = 1 - alpha
    total = _neighbour_sum(torch.ones_like(alpha), right, below) + 1e-7  # 0 for a single pixel
    # The 2 x 2 system of each pixel: [[aa, ab], [ab, bb]] times both colours.
    aa, bb, ab = alpha * alpha + total, beta * beta + total, alpha * beta
    scale = 1 / (aa * bb - ab * ab)
    data = torch.cat([alpha * image, beta * image], 1)
    rows = torch.arange(alpha.shape[-2], device=alpha.device)[:, None]
    columns = torch.arange(alpha.shape[-1], device=alpha.device)
    even = (rows + columns) % 2 == 0
    for _ in range(steps):
        for half in (even, ~even):
            subject, surroundings = (data + _neighbour_sum(colors, right, below)).split(3, 1)
            front = (bb * subject - ab * surroundings) * scale
            back = (aa * surroundings - ab * subject) * scale
            colors = torch.where(half, torch.cat([front, back], 1).clamp(0, 1), colors)
    return colors


def _neighbour_sum(x: Tensor, right: Tensor, below: Tensor) -> Tensor:
    """Sum of each pixel's four neighbours, with weights for the edges to the right and below."""
    total = torch.zeros_like(x)
    total[..., :-1] += right * x[..., 1:]
    total[..., 1:] += right * x[..., :-1]
    total[..., :-1, :] += below * x[..., 1:, :]
    total[..., 1:, :] += below * x[..., :-1, :]
    return total


def _blur_fusion(
    image: Tensor, alpha: Tensor, subject: Tensor, surroundings: Tensor, radius: int
) -> tuple[Tensor, Tensor]:
    """One pass of blur fusion."""
    weighted = torch.cat((subject * alpha, surroundings * (1 - alpha), alpha), 1)
    sums = box_filter(weighted, radius)
    weight = sums[:, 6:]
    # Where a layer is absent from a window, its previous estimate replaces the mean.
    mean_subject = (sums[:, :3] + _EPSILON * subject) / (weight + _EPSILON)
    mean_surroundings = (sums[:, 3:6] + _EPSILON * surroundings) / (
        (1 - weight).clamp_min(0) + _EPSILON
    )
    residual = image - alpha * mean_subject - (1 - alpha) * mean_surroundings
    return (mean_subject + alpha * residual).clamp(0, 1), mean_surroundings.clamp(0, 1)


def _line_sum(x: Tensor, radius: int, dim: int) -> Tensor:
    """Sum over windows of ``2 · radius + 1`` along one axis, zero outside, by doubling windows."""
    size = x.shape[dim]
    radius = min(radius, size - 1)
    if radius == 0:
        return x
    shape = list(x.shape)
    shape[dim] = radius
    border = x.new_zeros(()).expand(shape)
    x = torch.cat((border, x, border), dim)
    window, span = 2 * radius + 1, 1
    total, covered = x.narrow(dim, 0, size), 1  # the lowest bit of the odd window is set
    while 2 * span <= window:
        length = x.shape[dim] - span
        x = x.narrow(dim, 0, length) + x.narrow(dim, span, length)
        span *= 2
        if window & span:
            total = total + x.narrow(dim, covered, size)
            covered += span
    return total
