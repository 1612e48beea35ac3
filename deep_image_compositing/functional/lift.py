"""Lifting alpha and colours from a small working size to a photograph's own.

The compositor and coarse-to-fine fusers call it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.compose import dilate, erode, unknown_band
from deep_image_compositing.functional.foreground import box_filter

REACH = 22
"""Pixels around the rim within which a stage may repaint; 22 along each axis is 31 across.

Of the working size, where that is smaller than the photograph's.
"""


NEAR = 4
"""Pixels of the small picture around its rim within which the lifted alpha may vary."""


def snap_alpha(alpha: Tensor, reach: int = REACH) -> Tensor:
    """Make ``alpha`` (B, 1, H, W) exactly 0 or 1 wherever the rim is farther than ``reach``.

    A network's sigmoid never quite arrives, and a trace of the other picture would change
    pixels that nobody asked to change. Soft tails near the rim are kept.
    """
    return torch.where(unknown_band(alpha, reach), alpha, (alpha > 0.5).to(alpha.dtype))


def upsample_rows(x: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Rows ``top`` to ``bottom`` of ``x`` (B, C, h, w) enlarged bilinearly to ``size`` (H, W).

    Gives what enlarging the whole and then slicing would, in the memory of the rows.

    Returns:
        (B, C, bottom - top, W).
    """
    height, width = size
    own = x.shape[-2]
    if own != height:
        y = (torch.arange(top, bottom, device=x.device) + 0.5) * (own / height) - 0.5
        y = y.clamp(0, own - 1)
        lower = y.floor().long()
        upper = (lower + 1).clamp(max=own - 1)
        part = (y - lower).to(x.dtype).view(-1, 1)
        x = torch.lerp(x[..., lower, :], x[..., upper, :], part)
    else:
        x = x[..., top:bottom, :]
    if x.shape[-1] == width:
        return x
    return F.interpolate(x, (bottom - top, width), mode="bilinear", align_corners=False)


def guided_factors(image: Tensor, alpha: Tensor, radius: int = 1, eps: float = 1e-2) -> Tensor:
    """How ``alpha`` follows the colours of ``image``: the factors a of a colour guided filter.

    In every square window ``alpha = a · rgb + b`` in the least-squares sense; the factors of all
    windows over a pixel are averaged.

    Args:
        image: (B, 3, h, w) in [0, 1].
        alpha: (B, 1, h, w) in [0, 1], of the same size.
        radius: of the windows, in pixels.
        eps: regulariser of the colours' variance; larger means smaller factors.

    Returns:
        (B, 3, h, w); 0 where alpha is constant all around.

    Source:
        He, Sun, Tang: Guided Image Filtering, ECCV 2010.
    """

    def mean(x: Tensor) -> Tensor:
        return box_filter(x, radius)

    varies = dilate(alpha, radius) > erode(alpha, radius)
    where = varies[:, 0].nonzero(as_tuple=True)
    if where[0].numel() == 0:
        return torch.zeros_like(image)

    def at(x: Tensor) -> Tensor:  # (N, channels); double, because covariances cancel
        return x[where[0], :, where[1], where[2]].double()

    mean_i, mean_p = at(mean(image)), at(mean(alpha))
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    moments = mean(torch.cat([image[:, i : i + 1] * image[:, j : j + 1] for i, j in pairs], 1))
    rr, rg, rb, gg, gb, bb = (
        value - mean_i[:, i] * mean_i[:, j] + (eps if i == j else 0.0)
        for value, (i, j) in zip(at(moments).unbind(1), pairs, strict=True)
    )
    cov = at(mean(image * alpha)) - mean_i * mean_p
    # The inverse of the symmetric 3 × 3 matrix by its cofactors.
    c00, c01, c02 = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    c11, c12, c22 = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    determinant = rr * c00 + rg * c01 + rb * c02
    r, g, b = cov.unbind(1)
    factors = torch.stack(
        [c00 * r + c01 * g + c02 * b, c01 * r + c11 * g + c12 * b, c02 * r + c12 * g + c22 * b], 1
    ) / determinant.unsqueeze(1)
    out = torch.zeros_like(image)
    out[where[0], :, where[1], where[2]] = factors.to(out.dtype)
    return mean(out)


def lift_alpha(
    photograph: Tensor,
    image: Tensor,
    alpha: Tensor,
    *,
    radius: int = 1,
    eps: float = 1e-2,
    band: int = 256,
) -> Tensor:
    """Enlarge ``alpha`` to the size of ``photograph``, following the photograph's own edges.

    What the photograph shows beyond its small version is turned into alpha by the guided filter's
    factors, found at the small size, and added to the enlarged alpha. (The plain fast guided
    filter is worse: it smooths an alpha that is already right at the small size.) Away from the
    small alpha's rim the result is exactly 0 or 1. Works in bands of rows, so that beside the
    result only a few rows are held in floating point.

    Args:
        photograph: (3, H, W), uint8, at full size.
        image: (1, 3, h, w) in [0, 1], the photograph at the working size.
        alpha: (1, 1, h, w) in [0, 1], the alpha of ``image``.
        radius: of the filter's windows, in small pixels.
        eps: see ``guided_factors``.
        band: rows that are worked on at a time.

    Returns:
        (1, 1, H, W) in [0, 1], float32, on the CPU.

    Source:
        The factors: He, Sun: Fast Guided Filter, 2015.
    """
    height, width = photograph.shape[-2:]
    alpha = alpha.float()
    if alpha.shape[-2:] == (height, width):
        return alpha.cpu()
    factors = guided_factors(image.float(), alpha, radius, eps).cpu()
    near = unknown_band(alpha, NEAR).float().cpu()
    image, alpha = image.float().cpu(), alpha.cpu()
    out = torch.empty(1, 1, height, width)
    for top in range(0, height, band):
        rows = slice(top, min(top + band, height))
        span = ((height, width), rows.start, rows.stop)
        detail = photograph[:, rows].float().div_(255).unsqueeze(0) - upsample_rows(image, *span)
        plain = upsample_rows(alpha, *span)
        value = plain + (upsample_rows(factors, *span) * detail).sum(1, keepdim=True)
        rim = upsample_rows(near, *span) > 0
        out[:, :, rows] = torch.where(rim, value.clamp_(0, 1), (plain > 0.5).float())
    return out


class Lifted(NamedTuple):
    """What ``follow_guide`` finds at full size.

    Attributes:
        alpha: (B, 1, H, W) in [0, 1].
        foreground_color: (B, 3, H, W) in [0, 1].
        old_background: (B, 3, H, W) in [0, 1].
    """

    alpha: Tensor
    foreground_color: Tensor
    old_background: Tensor


def make_guide(image: Tensor, alpha: Tensor, *pictures: Tensor) -> Tensor:
    """All that a part of the large picture must know of the small one, as channels.

    Enlarge it bilinearly, whole or a window of it, and hand it to ``follow_alpha`` or
    ``follow_guide``.

    Args:
        image: (B, 3, h, w) in [0, 1], the photograph at the small size.
        alpha: (B, 1, h, w) in [0, 1].
        *pictures: (B, 3, h, w) each; for ``follow_guide`` the subject's straight colour and
            what was behind it.

    Returns:
        (B, 8 + 3 for each picture, h, w): alpha, where it may vary, the guided filter's factors,
        the photograph, and the pictures.
    """
    near = unknown_band(alpha, NEAR).to(alpha.dtype)
    pairs = zip(image.split(1), alpha.split(1), strict=True)
    factors = torch.cat([guided_factors(*pair) for pair in pairs])
    return torch.cat([alpha, near, factors, image, *pictures], 1)


def follow_alpha(guide: Tensor, image: Tensor) -> Tensor:
    """Alpha (B, 1, H, W) at full size: the small one, and what the photograph shows beyond it.

    Args:
        guide: (B, at least 8, H, W), what ``make_guide`` made, enlarged bilinearly.
        image: (B, 3, H, W) in [0, 1], the photograph at full size.

    Source:
        As for ``lift_alpha``, whose answer this is.
    """
    alpha, near, factors, small = guide[:, :8].split((1, 1, 3, 3), 1)
    value = alpha + (factors * (image - small)).sum(1, keepdim=True)
    return torch.where(near > 0, value.clamp(0, 1), (alpha > 0.5).to(alpha.dtype))


def follow_guide(guide: Tensor, image: Tensor) -> Lifted:
    """Alpha and colours at full size, from the small ones and the photograph's own detail.

    Alpha as by ``follow_alpha``; what it and the smooth colours then fail to explain of a
    pixel is given to the subject in proportion to its alpha, the last step of blur fusion.

    Args:
        guide: (B, 14, H, W), what ``make_guide`` made of two pictures, enlarged bilinearly.
        image: (B, 3, H, W) in [0, 1], the photograph at full size.
    """
    alpha = follow_alpha(guide, image)
    color, old = guide[:, 8:].split(3, 1)
    unexplained = image - alpha * color - (1 - alpha) * old
    color = (color + alpha * unexplained).clamp(0, 1)
    return Lifted(alpha, torch.where(alpha == 1, image, color), old)
