"""Metrics of the slots: torchmetrics' own, and the ones that look at the rim alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from deep_image_compositing.metrics.band import (
    BAND_RADIUS,
    BandPSNR,
    PicturePSNR,
    band_psnr,
    picture_psnr,
    rim_band,
)
from deep_image_compositing.metrics.composites import (
    Exactness,
    Halo,
    color_error,
    exactness,
    halo,
    ssim_map,
)
from deep_image_compositing.metrics.harmonization import (
    ForegroundError,
    Similarity,
    SquareError,
    foreground_error,
    similarity,
    square_error,
)
from deep_image_compositing.metrics.masks import iou, max_f_measure, outline_distance
from deep_image_compositing.metrics.matting import connectivity_error, gradient_error, mse, sad

__all__ = [
    "BAND_RADIUS",
    "BandPSNR",
    "Exactness",
    "ForegroundError",
    "Halo",
    "PicturePSNR",
    "Similarity",
    "SquareError",
    "band_psnr",
    "color_error",
    "connectivity_error",
    "exactness",
    "foreground_error",
    "fusion_metrics",
    "gradient_error",
    "halo",
    "harmonization_metrics",
    "iou",
    "mask_metrics",
    "max_f_measure",
    "mse",
    "outline_distance",
    "picture_psnr",
    "rim_band",
    "sad",
    "similarity",
    "square_error",
    "ssim_map",
]


class SoftIoU(BinaryJaccardIndex):
    """Intersection over union of masks thresholded at 0.5; targets may be soft."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float(), (target > 0.5).int())


class SoftF1(BinaryF1Score):
    """F-measure of masks thresholded at 0.5; targets may be soft."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float(), (target > 0.5).int())


class FlatMAE(MeanAbsoluteError):
    """Mean absolute error over all pixels."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float().contiguous(), target.float().contiguous())


def mask_metrics() -> MetricCollection:
    """Metrics of masks and alphas: IoU, F-measure (both at 0.5) and mean absolute error."""
    metrics: dict[str, Any] = {"iou": SoftIoU(), "f1": SoftF1(), "mae": FlatMAE()}
    return MetricCollection(metrics, compute_groups=False)


def fusion_metrics() -> MetricCollection:
    """Metrics of composites: PSNR in dB over the picture and inside the rim band."""
    metrics: dict[str, Any] = {"psnr": PicturePSNR(), "band_psnr": BandPSNR()}
    return MetricCollection(metrics, compute_groups=False)


def harmonization_metrics() -> MetricCollection:
    """Metrics of harmonised composites: PSNR in dB, MSE and fMSE of 8-bit values, SSIM."""
    metrics: dict[str, Any] = {
        "psnr": PicturePSNR(),
        "mse": SquareError(),
        "fmse": ForegroundError(),
        "ssim": Similarity(),
    }
    return MetricCollection(metrics, compute_groups=False)
