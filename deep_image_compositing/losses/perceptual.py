"""The perceptual loss: distance of a frozen network's features (Johnson et al., ECCV 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import WeightsError
from deep_image_compositing.networks.backbone import Backbone


class PerceptualLoss(nn.Module):
    """Mean absolute difference of a frozen timm backbone's features, averaged over its scales.

    Each feature is divided by the mean magnitude of the target's, so that no scale dominates. The
    ``backbone`` is ``vgg16`` in the paper; ``weights`` are ``pretrained`` or a checkpoint file.

    Raises:
        WeightsError: the weights cannot be had; random features are never used in silence.
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
