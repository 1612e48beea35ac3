"""The network that predicts a colour transform to harmonize a subject with its scene."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.blocks import SeparableConv

MONOMIALS = 10  # in red, green and blue up to the second degree, including 1
LOCAL = 6  # coefficients that vary across the image: a gain and an offset per channel
CELLS = 8  # grid cells along each side for these coefficients
LEVELS = 16  # histogram bins per channel


def squares(colors: Tensor) -> Tensor:
    """r², g², b², rg, gb, br of ``colors`` (B, 3, H, W), as (B, 6, H, W)."""
    return torch.cat([colors * colors, colors * colors.roll(-1, 1)], 1)


class ColorMapNetwork(nn.Module):
    """Predicts the coefficients of a colour transform from features and colours of the composite.

    An MLP maps the moments of a timm backbone's features and the colour distributions of subject
    and scene to a polynomial for the full subject; convolutions predict a grid of local gains and
    offsets. ``backbone`` and ``pretrained`` are as for ``Backbone``.
    """

    def __init__(self, backbone: str, pretrained: str | None = None, width: int = 128) -> None:
        super().__init__()
        self.encoder = Backbone(backbone, pretrained, extra_channels=1, max_stride=16)
        self.skipped = sum(stride < 4 for stride in self.encoder.strides)
        channels = self.encoder.channels[self.skipped :]
        self.features, self.colors = (
            nn.Sequential(nn.Linear(inputs, 2 * width), nn.LayerNorm(2 * width))
            for inputs in (4 * sum(channels), 6 * (LEVELS + 2))
        )
        self.dropout = nn.Dropout(0.2)  # the training set is small
        self.joined = nn.Sequential(
            nn.SiLU(), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.polynomial = nn.Linear(width, 3 * MONOMIALS)
        self.wanted = nn.Linear(width, 1)
        self.entry = nn.Conv2d(channels[-1] + 1, width // 2, 1)
        self.given = nn.Linear(width, width // 2)
        self.around = nn.Sequential(
            SeparableConv(width // 2, width // 2, 5), SeparableConv(width // 2, width // 2, 5)
        )
        self.local = nn.Conv2d(width // 2, LOCAL, 1)
        for head in (self.polynomial, self.local, self.wanted):
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.constant_(head.bias, 2.0 if head is self.wanted else 0.0)

    def forward(self, composite: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Polynomial (B, 3, 10) and grid (B, 6, 8, 8), relative to the identity transform.

        ``composite`` (B, 3, H, W) and ``mask`` (B, 1, H, W) lie in [0, 1].
        """
        features = self.encoder(composite, mask)[self.skipped :]
        moments: list[Tensor] = []
        for feature in features:
            small_mask = F.adaptive_avg_pool2d(mask, feature.shape[-2:])
            for weight in (small_mask, 1 - small_mask):
                moments.extend(_moments(feature, weight))
        colors = [distribution(composite, weight) for weight in (mask, 1 - mask)]
        vector = self.features(torch.cat(moments, 1)) + self.colors(torch.cat(colors, 1))
        vector = self.joined(self.dropout(vector))
        x = torch.cat([features[-1], small_mask], 1)
        x = F.silu(self.entry(x) + self.given(vector)[..., None, None])
        grid = self.local(F.adaptive_avg_pool2d(self.around(x), CELLS))
        gate = self.wanted(vector).sigmoid()[..., None]  # whether to change anything
        return gate * self.polynomial(vector).view(-1, 3, MONOMIALS), gate[..., None] * grid


def _moments(feature: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, C) of a feature (B, C, H, W) under weights (B, 1, H, W)."""
    total = weight.sum((2, 3)).clamp_min(1e-3)
    mean = (feature * weight).sum((2, 3)) / total
    square = (feature**2 * weight).sum((2, 3)) / total
    return mean, (square - mean**2).clamp_min(1e-4).sqrt()


def distribution(composite: Tensor, weight: Tensor) -> Tensor:
    """Soft histogram, mean and deviation of each channel, (B, 54)."""
    color, weight = (F.adaptive_avg_pool2d(x, 64).flatten(2) for x in (composite, weight))
    total = weight.sum(2, keepdim=True).clamp_min(1e-3)
    # Each value is divided linearly between its two nearest bins.
    position = color * (LEVELS - 1)
    below = position.detach().long().clamp(0, LEVELS - 2)
    zeros = color.new_zeros(*color.shape[:2], LEVELS)
    histogram = zeros.scatter_add(2, below, weight * (below + 1 - position))
    histogram = histogram.scatter_add(2, below + 1, weight * (position - below)) / total
    mean = (color * weight).sum(2, keepdim=True) / total
    variance = ((color - mean) ** 2 * weight).sum(2, keepdim=True) / total
    parts = (4 * histogram, 2 * mean, 4 * (variance + 1e-6).sqrt())
    return torch.cat([part.flatten(1) for part in parts], 1)
