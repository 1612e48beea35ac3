"""A small network that says one thing about a whole picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.functional.resize import pad_to_multiple
from deep_image_compositing.networks.blocks import ConvNormAct

STRIDE = 4


class Judge(nn.Module):
    """Whether an alpha is exactly that of its photograph, seen from all of its soft rim.

    Every place of the rim is looked at closely, over some 30 pixels, and what is seen there is
    averaged: strands that alpha follows as the photograph does are seen in no rough mask.

    Args:
        width: channels of the first convolution; the others have up to twice as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = nn.Sequential(
            ConvNormAct(4 * 4, width),
            ConvNormAct(width, width),
            ConvNormAct(width, 2 * width, 3, 2),
            ConvNormAct(2 * width, 2 * width),
            ConvNormAct(2 * width, 2 * width),
        )
        self.decide = nn.Linear(2 * width, 1)

    def forward(self, photograph: Tensor, alpha: Tensor, where: Tensor) -> Tensor:
        """Logit (B,) of the whole.

        Args:
            photograph: (B, 3, H, W) in [0, 1].
            alpha: (B, 1, H, W) in [0, 1].
            where: (B, 1, H, W), 1 where to look and 0 elsewhere.
        """
        seen, _ = pad_to_multiple(torch.cat([photograph, alpha], 1), STRIDE)
        features = self.look(F.pixel_unshuffle(seen, 2))
        share = F.avg_pool2d(pad_to_multiple(where, STRIDE)[0], STRIDE)
        share = share / share.sum((2, 3), keepdim=True).clamp_min(1e-6)
        return self.decide((features * share).sum((2, 3)))[:, 0]
