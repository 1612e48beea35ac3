"""Metrics of harmonised composites, as the literature of image harmonisation has them.

Errors are of 8-bit values, so that squares span 0 to 65025. MSE and PSNR are as in Tsai et al.,
"Deep Image Harmonization", CVPR 2017; fMSE is from Cun and Pun, "Improving the Harmony of the
Composite Image by Spatial-Separated Attention Module", TIP 2020; SSIM as in Guo et al.,
"Intrinsic Image Harmonization", CVPR 2021. Each is a number a picture, at the size and precision of
the pictures that are given; benchmarks average these over pictures, which are first reduced to
256 x 256, or left as they are ("full resolution"), and rounded to 8 bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deep_image_compositing.metrics.band import _MeanOverPictures
from deep_image_compositing.metrics.composites import SMALLEST, ssim_map


def square_error(preds: Tensor, target: Tensor) -> Tensor:
    """MSE of each picture, (B,), of 8-bit values; pictures are (B, 3, H, W) in [0, 1]."""
    return _squares(preds, target).mean((1, 2, 3))


def foreground_error(preds: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """fMSE: MSE of each picture where its ``mask`` (B, 1, H, W) exceeds one half; else NaN."""
    inside = (mask > 0.5).float()
    return (_squares(preds, target) * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))


def similarity(preds: Tensor, target: Tensor) -> Tensor:
    """SSIM of each picture, (B,): the mean of ``ssim_map``; NaN below 6 pixels either way."""
    if min(preds.shape[-2:]) < SMALLEST:
        return torch.full((len(preds),), math.nan, device=preds.device)
    return torch.stack([ssim_map(*pair).mean() for pair in zip(preds, target, strict=True)])


def _squares(preds: Tensor, target: Tensor) -> Tensor:
    return (255 * (preds.float() - target.float())).square()


class SquareError(_MeanOverPictures):
    """Mean over pictures of ``square_error``."""

    higher_is_better = False

    def update(self, preds: Tensor, target: Tensor, mask: Tensor | None = None) -> None:  # type: ignore[override]
        super().update(square_error(preds, target))


class ForegroundError(_MeanOverPictures):
    """Mean over pictures of ``foreground_error``."""

    higher_is_better = False

    def update(self, preds: Tensor, target: Tensor, mask: Tensor) -> None:  # type: ignore[override]
        super().update(foreground_error(preds, target, mask))


class Similarity(_MeanOverPictures):
    """Mean over pictures of ``similarity``; takes and ignores what other metrics need."""

    def update(self, preds: Tensor, target: Tensor, **others: Tensor) -> None:  # type: ignore[override]
        super().update(similarity(preds, target))
