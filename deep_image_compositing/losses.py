"""Loss functions of the trainable stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import WeightsError
from deep_image_compositing.networks.backbone import Backbone


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits (B, 1, H, W) against soft targets, in float32.

    ``weight`` (B, 1, H, W) weighs the pixels; use 0 where the annotation is unreliable.
    """
    value = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    if weight is None:
        return value.mean()
    return (value * weight).sum() / weight.sum().clamp_min(1.0)


def mask_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    iou: float = 0.5,
    gradient: float = 1.0,
) -> dict[str, Tensor]:
    """Cross-entropy, soft IoU and L1 of spatial gradients of (B, 1, H, W) logits, in float32.

    Cross-entropy averages over pixels, the IoU over pictures; gradients sharpen the outline.
    ``weight`` (B, 1, H, W), at least 0, weighs the pixels; ``iou`` and ``gradient`` weigh their
    terms. Returns weighted terms by name, to be summed.
    """
    logits, target = logits.float(), target.float()
    weight = target.new_ones(()) if weight is None else weight.float()
    weight = weight.expand_as(target)
    total = weight.sum().clamp_min(1.0)
    mask = logits.sigmoid()
    intersection = (weight * mask * target).sum((1, 2, 3))
    union = (weight * (mask + target - mask * target)).sum((1, 2, 3))
    difference = mask - target
    horizontal = (difference.diff(dim=-1).abs() * weight[..., 1:]).sum()
    vertical = (difference.diff(dim=-2).abs() * weight[..., 1:, :]).sum()
    return {
        "cross_entropy": cross_entropy(logits, target, weight),
        "iou": iou * (1 - (intersection + 1) / (union + 1)).mean(),
        "gradient": gradient * (horizontal + vertical) / total,
    }


def subject_loss(output: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Mean absolute, mean squared and log mean squared error over the subject, in float32.

    Like the PSNR, the logarithm rewards reducing small errors further. Subjects below 1 % of the
    picture count less, as in Sofiiuk et al., WACV 2021. Pictures are (B, 3, H, W) and ``mask``
    (B, 1, H, W), in [0, 1]. Returns weighted terms by name, to be summed.
    """
    difference = (output.float() - target.float()) * (mask > 0)
    area = (mask > 0).float().mean((1, 2, 3)).clamp_min(0.01)
    squares = difference.square().mean((1, 2, 3)) / area
    return {
        "l1": (difference.abs().mean((1, 2, 3)) / area).mean(),
        "mse": 10 * squares.mean(),
        "log": 0.05 * (1 + squares * (255 / 2) ** 2).log().mean(),
    }


def laplacian_loss(output: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """L1 distance of the Laplacian pyramids of (B, C, H, W), with weight 2^i for level i.

    As in Hou and Liu, ICCV 2019, but the pyramid is built from 2 x 2 means. The coarsest residual
    is left out, so constant offsets do not count. Small pictures have fewer than ``levels`` levels.
    """
    difference = output.float() - target.float()
    total = difference.new_zeros(())
    for level in range(levels):
        if min(difference.shape[-2:]) < 2:
            break
        coarse = F.avg_pool2d(difference, 2, ceil_mode=True)
        fine = F.interpolate(coarse, size=difference.shape[-2:], mode="bilinear")
        total = total + 2**level * (difference - fine).abs().mean()
        difference = coarse
    return total


class PerceptualLoss(nn.Module):
    """L1 distance of a frozen timm backbone's features, averaged over its scales.

    As in Johnson et al., ECCV 2016; each scale is divided by the mean magnitude of the target's
    features. ``weights`` is ``pretrained`` or a checkpoint file. Raises ``WeightsError`` if they
    cannot be loaded.
    """

    def __init__(self, backbone: str, weights: str = "pretrained", max_stride: int = 8) -> None:
        super().__init__()
        try:
            self.features = Backbone(backbone, weights, max_stride=max_stride).eval()
        except WeightsError as error:
            raise WeightsError(
                f"the perceptual loss cannot be loaded: {error}; name a file with "
                "--model.perceptual_weights, or leave the loss out with --model.perceptual null"
            ) from None
        self.features.requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode, so that batch statistics stay frozen."""
        return super().train(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar distance of two batches (B, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            target_features = self.features(target)
        terms = [
            F.l1_loss(a, b) / b.abs().mean().clamp_min(1e-3)
            for a, b in zip(self.features(output), target_features, strict=True)
        ]
        return torch.stack(terms).mean()
