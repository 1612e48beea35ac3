"""Quality of composites: over the picture, and inside the rim band where they are won and lost."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from deep_image_compositing.functional.compose import unknown_band

BAND_RADIUS = 11  # pixels by which the soft rim (0.02 < alpha < 0.98) is dilated to make the band


def rim_band(alpha: Tensor, radius: int = BAND_RADIUS) -> Tensor:
    """The band around the rim, (B, 1, H, W) boolean, of the true alpha (B, 1, H, W) in [0, 1].

    It is 0.02 < alpha < 0.98 and every hard edge, dilated by ``radius`` pixels.
    """
    return unknown_band(alpha, radius, low=0.02, high=0.98)


def band_psnr(
    composite: Tensor, target: Tensor, alpha: Tensor, radius: int = BAND_RADIUS
) -> Tensor:
    """PSNR in dB of each picture inside its ``rim_band``, (B,); NaN for a picture without a rim.

    Pictures are (B, 3, H, W) in [0, 1], the true alpha (B, 1, H, W). Differences below half an
    8-bit step count as that, so that the figure is at most 54 dB.
    """
    band = rim_band(alpha, radius).to(torch.float32)
    error = ((composite.float() - target.float()) ** 2).mean(1, keepdim=True)
    return decibels((error * band).sum((1, 2, 3)) / band.sum((1, 2, 3)))


def picture_psnr(composite: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB of each picture, (B,), at most 54 as in ``band_psnr``."""
    return decibels(((composite.float() - target.float()) ** 2).mean((1, 2, 3)))


def decibels(mean_square: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of mean squares in [0, 1]; half an 8-bit step counts as none."""
    return -10 * torch.log10(mean_square.clamp_min((0.5 / 255) ** 2))


class _MeanOverPictures(MeanMetric):
    """Mean of one number a picture; pictures whose number is NaN do not count."""

    higher_is_better = True  # type: ignore[assignment]
    is_differentiable = False  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(nan_strategy="ignore")


class PicturePSNR(_MeanOverPictures):
    """Mean over pictures of ``picture_psnr``; takes and ignores what other metrics need."""

    def update(self, preds: Tensor, target: Tensor, **others: Tensor) -> None:  # type: ignore[override]
        super().update(picture_psnr(preds, target))


class BandPSNR(_MeanOverPictures):
    """Mean over pictures of ``band_psnr``, with a band of half width ``radius``."""

    def __init__(self, radius: int = BAND_RADIUS) -> None:
        super().__init__()
        self.radius = radius

    def update(self, preds: Tensor, target: Tensor, alpha: Tensor) -> None:  # type: ignore[override]
        super().update(band_psnr(preds, target, alpha, self.radius))
