"""The subject's true colour along its rim, free of the old background; fusers and data call it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra

_EPSILON = 1e-5


def box_filter(x: Tensor, radius: int) -> Tensor:
    """Mean over a square of ``2 · radius + 1`` pixels, cut off at the border of the picture.

    Only pixels that exist count: a constant picture stays constant up to the border. The cost
    grows with the logarithm of the radius, and sums are pairwise, so that float32 keeps its
    precision at any radius (an integral image would lose it).

    Args:
        x: (B, C, H, W), floating point; half precision is computed in float32.
        radius: pixels, at least 0; at 0 the result is ``x``.

    Raises:
        UsageError: for a negative radius.
    """
    if radius < 0:
        raise UsageError(f"a radius counts pixels and must be at least 0, got {radius}")
    if radius == 0:
        return x
    dtype = x.dtype
    x = _wide(x)
    counts = [_window_sizes(x, radius, dim) for dim in (-2, -1)]
    x = window_sum(x, radius)
    return (x / (counts[0][:, None] * counts[1])).to(dtype)


def window_sum(x: Tensor, radius: int) -> Tensor:
    """Sum of ``x`` (B, C, H, W) over squares of ``2 · radius + 1`` pixels, zero outside."""
    return _line_sum(_line_sum(x, radius, -2), radius, -1)


def blur_fusion_foreground(
    image: Tensor, alpha: Tensor, radii: Sequence[int] = (90, 6)
) -> tuple[Tensor, Tensor]:
    """Estimate what colours the subject and the old background had before they mixed.

    Blur Fusion: each layer's colour is first its mean over a large window, weighted by that
    layer's own opacity; then what these means fail to explain of the pixel is given to the
    subject in proportion to alpha. A second pass with a small window refines the first.

    Where alpha is 1 the subject's colour is exactly the image's, and where it is 0 the
    background's is; where alpha is 0 the subject has no colour, and a plausible one is filled
    in from its surroundings.

    Args:
        image: (B, 3, H, W) in [0, 1], the photograph.
        alpha: (B, 1, H, W) in [0, 1], the subject's opacity in it.
        radii: window radius in pixels of each pass; the published method uses (90, 6).

    Returns:
        ``foreground_color`` and ``background_color``, both (B, 3, H, W) in [0, 1].

    Raises:
        UsageError: when ``radii`` is empty or holds a negative radius.

    Source:
        Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021.
    """
    if not radii:
        raise UsageError("blur fusion needs at least one radius; the published one is (90, 6)")
    dtype = image.dtype
    picture, opacity = _wide(image), _wide(alpha)
    subject = surroundings = picture
    for radius in radii:
        subject, surroundings = _blur_fusion(picture, opacity, subject, surroundings, radius)
    subject = torch.where(opacity == 1, picture, subject)
    surroundings = torch.where(opacity == 0, picture, surroundings)
    return subject.to(dtype), surroundings.to(dtype)


def multilevel_foreground(image: Tensor, alpha: Tensor) -> Tensor:
    """Estimate the subject's colour by pymatting, one picture after the other on the CPU.

    Where alpha is 1 the colour is exactly the image's.

    Args:
        image: (B, 3, H, W) in [0, 1], the photograph.
        alpha: (B, 1, H, W) in [0, 1], the subject's opacity in it.

    Returns:
        ``foreground_color``, (B, 3, H, W) in [0, 1].

    Raises:
        MissingExtraError: pymatting is not installed.

    Source:
        Germer, Uelwer, Conrad and Harmeling, "Fast Multi-Level Foreground Estimation", ICPR 2020.
    """
    pymatting = import_extra("pymatting", "multi-level colour")
    height, width = image.shape[-2:]
    # It divides by the number of its levels, which one pixel does not have.
    room = (0, int(width == 1), 0, int(height == 1))
    pictures = F.pad(image.detach().float(), room, mode="replicate").cpu()
    opacities = F.pad(alpha.detach().float(), room, mode="replicate").cpu()
    colors = [
        torch.from_numpy(
            pymatting.estimate_foreground_ml(
                np.ascontiguousarray(picture.permute(1, 2, 0).numpy()), opacity[0].numpy()
            )
        ).permute(2, 0, 1)
        for picture, opacity in zip(pictures, opacities, strict=True)
    ]
    color = torch.stack(colors)[..., :height, :width].to(image)
    return torch.where(alpha == 1, image, color)


def _blur_fusion(
    image: Tensor, alpha: Tensor, subject: Tensor, surroundings: Tensor, radius: int
) -> tuple[Tensor, Tensor]:
    """One pass of blur fusion: improve both estimates from their means in a window."""
    weighted = torch.cat((subject * alpha, surroundings * (1 - alpha), alpha), 1)
    sums = box_filter(weighted, radius)
    weight = sums[:, 6:]
    # Where a window holds nothing of a layer, the previous estimate stands in for its mean.
    mean_subject = (sums[:, :3] + _EPSILON * subject) / (weight + _EPSILON)
    mean_surroundings = (sums[:, 3:6] + _EPSILON * surroundings) / (
        (1 - weight).clamp_min(0) + _EPSILON
    )
    unexplained = image - alpha * mean_subject - (1 - alpha) * mean_surroundings
    return (mean_subject + alpha * unexplained).clamp(0, 1), mean_surroundings.clamp(0, 1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _window_sizes(x: Tensor, radius: int, dim: int) -> Tensor:
    """How many pixels of the picture each window along ``dim`` holds."""
    size = x.shape[dim]
    place = torch.arange(size, device=x.device)
    before, after = place.clamp(max=radius), (size - 1 - place).clamp(max=radius)
    return (before + after + 1).to(x.dtype)


def _line_sum(x: Tensor, radius: int, dim: int) -> Tensor:
    """Sum over windows of ``2 · radius + 1`` along one axis, zero beyond the border.

    The sum over 2n pixels is that of two neighbouring windows of n; windows whose widths are the
    binary digits of the full width, laid side by side, make it up.
    """
    size = x.shape[dim]
    radius = min(radius, size - 1)
    if radius == 0:
        return x
    shape = list(x.shape)
    shape[dim] = radius
    border = x.new_zeros(()).expand(shape)
    x = torch.cat((border, x, border), dim)
    window, span = 2 * radius + 1, 1
    total, covered = x.narrow(dim, 0, size), 1  # the width is odd: its lowest digit is 1
    while 2 * span <= window:
        length = x.shape[dim] - span
        x = x.narrow(dim, 0, length) + x.narrow(dim, span, length)
        span *= 2
        if window & span:
            total = total + x.narrow(dim, covered, size)
            covered += span
    return total
