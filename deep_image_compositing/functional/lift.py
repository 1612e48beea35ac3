"""Lifting alpha and colours from a small working size to a photograph's own."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from deep_image_compositing.functional.compose import dilate, erode, unknown_band
from deep_image_compositing.functional.foreground import box_filter
from deep_image_compositing.functional.matting import color_products

REACH = 22  # pixels around the rim at the working size that may be repainted; 31 across
NEAR = 4  # pixels of the small picture around its rim within which the lifted alpha may vary


def snap_alpha(alpha: Tensor, reach: int = REACH) -> Tensor:
    """``alpha``, but exactly 0 or 1 beyond ``reach`` of the rim: sigmoids leave traces there."""
    return torch.where(unknown_band(alpha, reach), alpha, (alpha > 0.5).to(alpha.dtype))


def guided_factors(image: Tensor, alpha: Tensor, radius: int = 1, eps: float = 1e-2) -> Tensor:
    """How ``alpha`` follows the colours of ``image``: a guided filter's factors a, (B, 3, H, W).

    In every square window ``alpha = a · rgb + b`` by least squares, ``eps`` added to the variances;
    averaged over all windows of a pixel; 0 where alpha is constant. Source: He, Sun and Tang, ECCV
    2010.
    """
    mean = functools.partial(box_filter, radius=radius)
    varies = dilate(alpha, radius) > erode(alpha, radius)
    where = varies[:, 0].nonzero(as_tuple=True)
    if where[0].numel() == 0:
        return torch.zeros_like(image)

    def at(x: Tensor) -> Tensor:  # (N, channels); double, because covariances cancel
        return x[where[0], :, where[1], where[2]].double()

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
    out[where[0], :, where[1], where[2]] = factors.to(out.dtype)
    return mean(out)


def make_guide(image: Tensor, alpha: Tensor, *pictures: Tensor) -> Tensor:
    """All that a part of the large picture must know of the small one, (B, 8 + 3 a picture, h, w).

    Alpha, where it may vary, the guided filter's factors, the photograph, and the ``pictures``: for
    ``follow_guide`` the subject's straight colour and the old background's. Enlarge them
    bilinearly.
    """
    near = unknown_band(alpha, NEAR).to(alpha.dtype)
    pairs = zip(image.split(1), alpha.split(1), strict=True)
    factors = torch.cat([guided_factors(*pair) for pair in pairs])
    return torch.cat([alpha, near, factors, image, *pictures], 1)


def follow_alpha(guide: Tensor, image: Tensor) -> Tensor:
    """Alpha at full size: the small one, and what the photograph ``image`` shows beyond it.

    By the guided filter's factors (He and Sun, "Fast Guided Filter", 2015, which itself would
    smooth an alpha that is right). Away from the small alpha's rim it is exactly 0 or 1.
    """
    alpha, near, factors, small = guide[:, :8].split((1, 1, 3, 3), 1)
    value = alpha + (factors * (image - small)).sum(1, keepdim=True)
    return torch.where(near > 0, value.clamp(0, 1), (alpha > 0.5).to(alpha.dtype))


def follow_guide(guide: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha by ``follow_alpha``, the subject's colour and the old background's at full size.

    What alpha and the smooth colours fail to explain of a pixel goes to the subject, by alpha.
    """
    alpha = follow_alpha(guide, image)
    color, old = guide[:, 8:].split(3, 1)
    unexplained = image - alpha * color - (1 - alpha) * old
    color = (color + alpha * unexplained).clamp(0, 1)
    return alpha, torch.where(alpha == 1, image, color), old
