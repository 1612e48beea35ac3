"""Closed-form matting on the device, batched, with a matrix-free matting Laplacian.

The product of the Laplacian of Levin, Lischinski and Weiss (CVPR 2006) and an alpha is a colour
guided filter (He, Sun and Tang, CVPR 2010), so box sums and conjugate gradients suffice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.compose import resize_trimap
from deep_image_compositing.functional.foreground import window_sum
from deep_image_compositing.functional.resize import resize


@dataclass(frozen=True)
class MattingLaplacian:
    """The matting Laplacian of a batch of images, as a linear operator.

    ``image`` has zero mean. ``count``, ``mean`` and ``factor`` describe each window: its number of
    pixels, its mean colour, and the row-wise Cholesky factor (B, 6, H, W) of its regularised
    covariance.
    """

    image: Tensor
    count: Tensor
    mean: Tensor
    factor: Tensor
    radius: int

    @classmethod
    def of(cls, image: Tensor, epsilon: float = 1e-5, radius: int = 1) -> MattingLaplacian:
        """Build it for ``image`` (B, 3, H, W), adding ``epsilon`` (colour²) to each variance."""
        image = image - image.mean((2, 3), keepdim=True)
        count = window_sum(torch.ones_like(image[:1, :1]), radius)
        sums = window_sum(torch.cat([image, color_products(image)], 1), radius) / count
        mean = sums[:, :3]
        c = sums[:, 3:] - color_products(mean)
        # A Cholesky factor with pivots floored at epsilon: the determinant of a flat window's
        # covariance underflows in float32, its Cholesky factor does not.
        l00 = (c[:, 0].clamp_min(0) + epsilon).sqrt()
        l10, l20 = c[:, 1] / l00, c[:, 2] / l00
        l11 = ((c[:, 3] - l10 * l10).clamp_min(0) + epsilon).sqrt()
        l21 = (c[:, 4] - l20 * l10) / l11
        l22 = ((c[:, 5] - l20 * l20 - l21 * l21).clamp_min(0) + epsilon).sqrt()
        return cls(image, count, mean, torch.stack([l00, l10, l20, l11, l21, l22], 1), radius)

    def coefficients(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Slope (B, 3, H, W) and offset (B, 1, H, W) of ``p`` (B, 1, H, W) in each window."""
        sums = window_sum(torch.cat([self.image * p, p], 1), self.radius) / self.count
        mean_p = sums[:, 3:]
        covariance = sums[:, :3] - self.mean * mean_p
        slope = self._solve(covariance)
        return slope, mean_p - (slope * self.mean).sum(1, keepdim=True)

    def lines(self, p: Tensor) -> Tensor:
        """``coefficients`` (B, 4, H, W), averaged over all windows that contain a pixel."""
        return window_sum(torch.cat(self.coefficients(p), 1), self.radius) / self.count

    def __call__(self, p: Tensor) -> Tensor:
        """The product L p, (B, 1, H, W)."""
        sums = window_sum(torch.cat(self.coefficients(p), 1), self.radius)
        return self.count * p - (sums[:, :3] * self.image).sum(1, keepdim=True) - sums[:, 3:]

    def _solve(self, v: Tensor) -> Tensor:
        """Inverse of the regularised covariance times ``v`` (B, 3, H, W)."""
        l00, l10, l20, l11, l21, l22 = self.factor.unbind(1)
        a0 = v[:, 0] / l00
        a1 = (v[:, 1] - l10 * a0) / l11
        a2 = (v[:, 2] - l20 * a0 - l21 * a1) / l22
        x2 = a2 / l22
        x1 = (a1 - l21 * x2) / l11
        return torch.stack([(a0 - l10 * x1 - l20 * x2) / l00, x1, x2], 1)


def color_products(x: Tensor) -> Tensor:
    """Products (B, 6, H, W) of all pairs of channels of ``x`` (B, 3, H, W)."""
    r, g, b = x.unbind(1)
    return torch.stack([r * r, r * g, r * b, g * g, g * b, b * b], 1)


def solve_alpha(
    image: Tensor, trimap: Tensor, start: Tensor, iterations: int = 30, epsilon: float = 1e-5
) -> Tensor:
    """Solve for the alpha of unknown pixels by conjugate gradients from ``start``."""
    unknown = (trimap == 0.5).to(image.dtype)
    known = trimap * (1 - unknown)
    laplacian = MattingLaplacian.of(image, epsilon)
    x = start * unknown
    right = -unknown * laplacian(known)

    def product(v: Tensor) -> Tensor:
        return unknown * laplacian(v)

    residual = right - product(x)
    p = residual
    rho = (residual * residual).sum((1, 2, 3), keepdim=True)
    # Below a residual of 1e-6 per pixel, or without curvature, steps are only rounding errors.
    tolerance = 1e-12 * torch.maximum(rho, unknown.sum((1, 2, 3), keepdim=True))
    for _ in range(iterations):
        q = product(p)
        curvature = (p * q).sum((1, 2, 3), keepdim=True)
        flat = curvature <= 1e-7 * (p * p).sum((1, 2, 3), keepdim=True)
        step = rho / torch.where(flat | (rho <= tolerance), torch.inf, curvature)
        x = x + step * p
        residual = residual - step * q
        new = (residual * residual).sum((1, 2, 3), keepdim=True)
        p = residual + new / rho.clamp_min(1e-20) * p
        rho = new
    return (known + unknown * x).clamp(0, 1)


def closed_form(image: Tensor, trimap: Tensor, start: Tensor) -> Tensor:
    """Alpha (B, 1, H, W) by ``solve_alpha`` at a quarter and then half of the size, from ``start``.

    It is upsampled by the colour lines of the reduced image (He and Sun, "Fast Guided Filter",
    2015).
    """
    height, width = image.shape[-2:]
    alpha, small = start, image
    for scale in (4, 2):
        size = (-(-height // scale), -(-width // scale))
        small = resize(image, size)
        alpha = solve_alpha(small, resize_trimap(trimap, size), resize(alpha, size), iterations=20)
    if alpha.shape[-2:] != (height, width):
        lines = MattingLaplacian.of(small).lines(alpha)
        lines = F.interpolate(lines, (height, width), mode="bilinear", align_corners=False)
        centred = image - small.mean((2, 3), keepdim=True)
        alpha = ((lines[:, :3] * centred).sum(1, keepdim=True) + lines[:, 3:]).clamp(0, 1)
    return torch.where(trimap == 0.5, alpha, trimap)


def guided_filter(image: Tensor, mask: Tensor, radius: int, epsilon: float) -> Tensor:
    """Filter ``mask`` to follow the edges of ``image``; the result may slightly leave [0, 1].

    In each window the mask is fitted by an affine function of the colour, with a penalty
    ``epsilon``, in squared colour units, on its slope. Flat colours need double precision. Source:
    He, Sun and Tang, "Guided Image Filtering", PAMI 2013.
    """
    windows = MattingLaplacian.of(image, epsilon, radius)
    lines = windows.lines(mask)
    return (lines[:, :3] * windows.image).sum(1, keepdim=True) + lines[:, 3:]
