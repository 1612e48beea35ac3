"""Losses that need more than one line of torch; the stages' training losses are made of these."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import WeightsError
from deep_image_compositing.networks.backbone import Backbone


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits (B, 1, H, W) against soft targets, in float32.

    ``weight`` (B, 1, H, W) scales pixels; where it is 0 the annotation is not trusted.
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
    """Cross-entropy, soft intersection over union and the error of the gradient, in float32.

    Cross-entropy counts pixels, the soft IoU each picture alike; the spatial gradients sharpen the
    outline. ``weight`` (B, 1, H, W), at least 0, says how far each pixel's annotation is trusted;
    ``iou`` and ``gradient`` weigh their terms. Returns the terms by name, to be summed.
    """
    logits, target = logits.float(), target.float()
    weight = target.new_ones(()) if weight is None else weight.float()
    weight = weight.expand_as(target)
    total = weight.sum().clamp_min(1.0)
    mask = logits.sigmoid()
    both = (weight * mask * target).sum((1, 2, 3))
    either = (weight * (mask + target - mask * target)).sum((1, 2, 3))
    difference = mask - target
    across = (difference.diff(dim=-1).abs() * weight[..., 1:]).sum()
    down = (difference.diff(dim=-2).abs() * weight[..., 1:, :]).sum()
    return {
        "cross_entropy": cross_entropy(logits, target, weight),
        "iou": iou * (1 - (both + 1) / (either + 1)).mean(),
        "gradient": gradient * (across + down) / total,
    }


def subject_loss(output: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Absolute and squared error over the subject, and the logarithm of the latter, in float32.

    The logarithm asks for small errors to become smaller, as the PSNR does. A subject smaller than
    1 % of the picture counts less, as in Sofiiuk et al., WACV 2021. Pictures are (B, 3, H, W),
    ``mask`` (B, 1, H, W), in [0, 1]. Returns the weighted terms by name, to be summed.
    """
    difference = (output.float() - target.float()) * (mask > 0)
    share = (mask > 0).float().mean((1, 2, 3)).clamp_min(0.01)
    squares = difference.square().mean((1, 2, 3)) / share
    return {
        "l1": (difference.abs().mean((1, 2, 3)) / share).mean(),
        "mse": 10 * squares.mean(),
        "log": 0.05 * (1 + squares * (255 / 2) ** 2).log().mean(),
    }


def laplacian_loss(output: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """L1 distance of up to ``levels`` band-pass levels of (B, C, H, W), weighted 1, 2, 4 and so on.

    As in Hou and Liu, ICCV 2019, but of 2 x 2 means; it ignores constant offsets.
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
    """Mean absolute difference of a frozen timm backbone's features, averaged over its scales.

    As in Johnson et al., ECCV 2016; features are divided by the mean magnitude of the target's.
    ``weights`` are ``pretrained`` or a checkpoint file; without them ``WeightsError``.
    """

    def __init__(self, backbone: str, weights: str = "pretrained", max_stride: int = 8) -> None:
        super().__init__()
        try:
            self.features = Backbone(backbone, weights, max_stride=max_stride).eval()
        except WeightsError as error:
            raise WeightsError(
                f"the perceptual loss cannot be had: {error}; name a file with "
                "--model.perceptual_weights, or leave the loss out with --model.perceptual null"
            ) from None
        self.features.requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode: the features are frozen, batch statistics included."""
        return super().train(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar distance of two batches (B, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            wanted = self.features(target)
        got = self.features(output)
        terms = [
            F.l1_loss(a, b) / b.abs().mean().clamp_min(1e-3)
            for a, b in zip(got, wanted, strict=True)
        ]
        return torch.stack(terms).mean()
