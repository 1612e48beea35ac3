"""Guided upsampling of alpha and colours from the working size to full size."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from deep_image_compositing.functional.compose import dilate, erode, unknown_band
from deep_image_compositing.functional.foreground import box_filter
from deep_image_compositing.functional.matting import color_products
from deep_image_compositing.functional.precision import double

REACH = 22  # pixels around the rim at the working size that may be repainted; 31 diagonally
NEAR = 4  # pixels around the rim at the working size within which upsampled alpha may vary


def snap_alpha(alpha: Tensor, reach: int = REACH) -> Tensor:
    """Round ``alpha`` to 0 or 1 beyond ``reach`` of the rim, where sigmoids are never exact."""
    return torch.where(unknown_band(alpha, reach), alpha, (alpha > 0.5).to(alpha.dtype))


def guided_factors(image: Tensor, alpha: Tensor, radius: int = 1, eps: float = 1e-2) -> Tensor:
    """Guided filter slopes a (B, 3, H, W) of ``alpha`` with respect to the colours of ``image``.

    Fits ``alpha = a · rgb + b`` in every square window by least squares, with ``eps`` added to the
    variances, and averages a over all windows of a pixel; 0 where alpha is constant. Source: He,
    Sun and Tang, ECCV 2010.
    """
    mean = functools.partial(box_filter, radius=radius)
    varies = dilate(alpha, radius) > erode(alpha, radius)
    where = varies[:, 0].nonzero(as_tuple=True)
    if where[0].numel() == 0:
        return torch.zeros_like(image)

    def at(x: Tensor) -> Tensor:  # (N, channels), in double precision for the covariances
        return double(x[where[0], :, where[1], where[2]])

    mean_i, mean_p = at(mean(image)), at(mean(alpha))
    covariance = at(mean(color_products(image))) - color_products(mean_i)
    rr, rg, rb, gg, gb, bb = covariance.unbind(1)
    rr, gg, bb = rr + eps, gg + eps, bb + eps
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
    out[where[0], :, where[1], where[2]] = factors.to(out)
    return mean(out)


def make_guide(image: Tensor, alpha: Tensor, *pictures: Tensor) -> Tensor:
    """Channels (B, 8 + 3 per picture, h, w) to upsample bilinearly for ``follow_guide``.

    They are alpha, where it may vary, the guided filter's slopes, the photograph, and ``pictures``:
    for ``follow_guide``, the straight colours of the subject and of the old background.
    """
    near = unknown_band(alpha, NEAR).to(alpha.dtype)
    pairs = zip(image.split(1), alpha.split(1), strict=True)
    factors = torch.cat([guided_factors(*pair) for pair in pairs])
    return torch.cat([alpha, near, factors, image, *pictures], 1)


def follow_alpha(guide: Tensor, image: Tensor) -> Tensor:
    """Alpha at full size: the upsampled one plus detail of the photograph ``image``.

    Detail is weighted by the guided filter's slopes (He and Sun, "Fast Guided Filter", 2015, which
    would also smooth a correct alpha). Away from the small alpha's rim it is exactly 0 or 1.
    """
    alpha, near, factors, small = guide[:, :8].split((1, 1, 3, 3), 1)
    value = alpha + (factors * (image - small)).sum(1, keepdim=True)
    return torch.where(near > 0, value.clamp(0, 1), (alpha > 0.5).to(alpha.dtype))


def follow_guide(guide: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha by ``follow_alpha``, and the colours of subject and old background, at full size.

    Alpha times the residual of the compositing equation is added to the subject's colour.
    """
    alpha = follow_alpha(guide, image)
    color, old = guide[:, 8:].split(3, 1)
    residual = image - alpha * color - (1 - alpha) * old
    color = (color + alpha * residual).clamp(0, 1)
    return alpha, torch.where(alpha == 1, image, color), old
