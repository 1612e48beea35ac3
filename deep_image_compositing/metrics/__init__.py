"""Metrics that stages log, by slot: torchmetrics' own, and means over pictures of our figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from deep_image_compositing.metrics import composites


class PictureMean(MeanMetric):
    """Mean over pictures of a figure; those for which it is NaN do not count.

    Args:
        figure: takes predictions, targets and what ``needs`` names of all that ``update`` is
            given; returns (B,).
        needs: names of keyword arguments.
    """

    def __init__(self, figure: Callable[..., Tensor], *needs: str) -> None:
        super().__init__(nan_strategy="ignore")
        self.figure, self.needs = figure, needs

    def update(self, preds: Tensor, target: Tensor, **others: Tensor) -> None:  # type: ignore[override]
        super().update(self.figure(preds, target, *(others[name] for name in self.needs)))


class SoftIoU(BinaryJaccardIndex):
    """Intersection over union of masks thresholded at 0.5; targets may be soft."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(_shares(preds), (target > 0.5).int())


class SoftF1(BinaryF1Score):
    """F-measure of masks thresholded at 0.5; targets may be soft."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(_shares(preds), (target > 0.5).int())


class FlatMAE(MeanAbsoluteError):
    """Mean absolute error over all pixels."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float().contiguous(), target.float().contiguous())


def _shares(preds: Tensor) -> Tensor:
    """Within [0, 1]: where any lies outside, torchmetrics takes all for logits."""
    return preds.float().clamp(0, 1)


def mask_metrics() -> MetricCollection:
    """Metrics of masks and alphas: IoU, F-measure (both at 0.5) and mean absolute error."""
    return _collection(iou=SoftIoU(), f1=SoftF1(), mae=FlatMAE())


def fusion_metrics() -> MetricCollection:
    """Metrics of composites: PSNR in dB over the picture and, by ``alpha``, inside the rim band."""
    return _collection(
        psnr=PictureMean(composites.picture_psnr),
        band_psnr=PictureMean(composites.band_psnr, "alpha"),
    )


def harmonization_metrics() -> MetricCollection:
    """Metrics of harmonised composites: PSNR in dB, MSE and fMSE of 8-bit values, SSIM."""
    return _collection(
        psnr=PictureMean(composites.picture_psnr),
        mse=PictureMean(composites.square_error),
        fmse=PictureMean(composites.foreground_error, "mask"),
        ssim=PictureMean(composites.similarity),
    )


def _collection(**metrics: Any) -> MetricCollection:
    return MetricCollection(metrics, compute_groups=False)
