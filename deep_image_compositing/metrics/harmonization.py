"""Metrics of harmonised composites, as the literature of image harmonisation has them.

Errors are of 8-bit values, so that squares span 0 to 65025. MSE and PSNR are as in Tsai et al.,
"Deep Image Harmonization", CVPR 2017; fMSE is from Cun and Pun, "Improving the Harmony of the
Composite Image by Spatial-Separated Attention Module", TIP 2020.
"""

from __future__ import annotations

from torch import Tensor

from deep_image_compositing.metrics.band import _MeanOverPictures


def square_error(preds: Tensor, target: Tensor) -> Tensor:
    """MSE of each picture, (B,), of 8-bit values; pictures are (B, 3, H, W) in [0, 1]."""
    return _squares(preds, target).mean((1, 2, 3))


def foreground_error(preds: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """fMSE: MSE of each picture where its ``mask`` (B, 1, H, W) exceeds one half; else NaN."""
    inside = (mask > 0.5).float()
    return (_squares(preds, target) * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))


def _squares(preds: Tensor, target: Tensor) -> Tensor:
    return (255 * (preds.float() - target.float())).square()


class SquareError(_MeanOverPictures):
    """Mean over pictures of ``square_error``."""

    higher_is_better = False  # type: ignore[assignment]

    def update(self, preds: Tensor, target: Tensor, mask: Tensor | None = None) -> None:  # type: ignore[override]
        super().update(square_error(preds, target))


class ForegroundError(_MeanOverPictures):
    """Mean over pictures of ``foreground_error``."""

    higher_is_better = False  # type: ignore[assignment]

    def update(self, preds: Tensor, target: Tensor, mask: Tensor) -> None:  # type: ignore[override]
        super().update(foreground_error(preds, target, mask))
