"""The torchmetrics collections that stages log, by slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from deep_image_compositing.metrics import composites


class PictureMean(MeanMetric):
    """Mean of a per-image metric, ignoring images for which it is NaN.

    Args:
        metric: function of predictions, targets and the arguments in ``needs``; returns (B,).
        needs: names of keyword arguments of ``update`` to pass to ``metric``.
    """

    def __init__(self, metric: Callable[..., Tensor], *needs: str) -> None:
        super().__init__(nan_strategy="ignore")
        self.metric, self.needs = metric, needs

    def update(self, preds: Tensor, target: Tensor, **others: Tensor) -> None:  # type: ignore[override]
        super().update(self.metric(preds, target, *(others[name] for name in self.needs)))


class _SoftTarget:
    def update(self, preds: Tensor, target: Tensor) -> None:
        # torchmetrics takes predictions outside [0, 1] for logits.
        super().update(preds.float().clamp(0, 1), (target > 0.5).int())  # type: ignore[misc]


class SoftIoU(_SoftTarget, BinaryJaccardIndex):
    """Intersection over union of masks thresholded at 0.5; targets may be soft."""


class SoftF1(_SoftTarget, BinaryF1Score):
    """F-measure of masks thresholded at 0.5; targets may be soft."""


class FlatMAE(MeanAbsoluteError):
    """Mean absolute error over all pixels."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float().contiguous(), target.float().contiguous())


def mask_metrics() -> MetricCollection:
    """Metrics of masks and alphas: IoU, F-measure (both at 0.5) and mean absolute error."""
    return _collection(iou=SoftIoU(), f1=SoftF1(), mae=FlatMAE())


def fusion_metrics() -> MetricCollection:
    """Metrics of composites: PSNR in dB, over the image and, by ``alpha``, in the rim band."""
    return _collection(
        psnr=PictureMean(composites.picture_psnr),
        band_psnr=PictureMean(composites.band_psnr, "alpha"),
    )


def harmonization_metrics() -> MetricCollection:
    """Metrics of harmonized composites: PSNR in dB, MSE and fMSE of 8-bit values, SSIM."""
    return _collection(
        psnr=PictureMean(composites.picture_psnr),
        mse=PictureMean(composites.square_error),
        fmse=PictureMean(composites.foreground_error, "mask"),
        ssim=PictureMean(composites.similarity),
    )


def _collection(**metrics: Any) -> MetricCollection:
    return MetricCollection(metrics, compute_groups=False)
