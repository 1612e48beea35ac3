"""The Laplacian-pyramid loss on mattes and pictures (Hou and Liu, ICCV 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def laplacian_loss(output: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """L1 distance of up to ``levels`` band-pass levels of (B, C, H, W), each of twice the weight.

    Pyramids are of 2 x 2 means, which makes the loss cheap; a constant offset is the business of
    the plain L1 term beside it.
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
