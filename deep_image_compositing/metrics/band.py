"""Quality inside the rim band, where composites are won and lost."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from deep_image_compositing.functional.compose import unknown_band

BAND_RADIUS = 11
"""Pixels by which the soft rim (0.02 < alpha < 0.98) is dilated to make the band."""


def band_psnr(
    composite: Tensor, target: Tensor, alpha: Tensor, radius: int = BAND_RADIUS
) -> Tensor:
    """PSNR in dB of each picture inside its rim band.

    Args:
        composite: (B, 3, H, W) in [0, 1].
        target: (B, 3, H, W) in [0, 1], the truth.
        alpha: (B, 1, H, W), the true alpha; the band is 0.02 < alpha < 0.98 and its hard edges,
            dilated by ``radius`` pixels.
        radius: half width of the band in pixels.

    Returns:
        (B,) decibels; NaN for a picture without a rim. Differences below half an 8-bit step count
        as that, so that the figure is at most 54 dB.
    """
    band = unknown_band(alpha, radius, low=0.02, high=0.98).to(torch.float32)
    error = ((composite.float() - target.float()) ** 2).mean(1, keepdim=True)
    mean = (error * band).sum((1, 2, 3)) / band.sum((1, 2, 3))
    return -10 * torch.log10(mean.clamp_min((0.5 / 255) ** 2))


class BandPSNR(Metric):
    """Mean over pictures of :func:`band_psnr`; pictures without a rim do not count.

    Args:
        radius: half width of the band in pixels.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, radius: int = BAND_RADIUS) -> None:
        super().__init__()
        self.radius = radius
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, alpha: Tensor) -> None:
        """Count one batch; shapes as in :func:`band_psnr`."""
        values = band_psnr(preds, target, alpha, self.radius)
        seen = ~values.isnan()
        self.total += values[seen].sum()
        self.count += seen.sum()

    def compute(self) -> Tensor:
        """Mean decibels; NaN before any picture with a rim."""
        return self.total / self.count
