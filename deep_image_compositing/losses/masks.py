"""Losses of soft masks: right pixels, the right region, outlines as sharp as the target's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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

    Cross-entropy counts pixels, so large subjects weigh most; the soft IoU counts each picture
    alike. The difference of the spatial gradients sharpens the outline and keeps soft values soft.
    ``weight`` (B, 1, H, W), at least 0, says how far each pixel's annotation is trusted; ``iou``
    and ``gradient`` weigh their terms. Returns the terms by name, to be summed.
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
