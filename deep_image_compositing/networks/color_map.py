"""The network that finds how a subject's colours have to move to belong into a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.blocks import SeparableConv

MONOMIALS = 10  # of red, green and blue up to the second degree, 1 among them
LOCAL = 6  # what may differ from place to place: a factor and an offset of each channel
CELLS = 8  # cells along each side of the grid of what differs from place to place
LEVELS = 16  # of each channel's distribution that the network is told


def squares(colors: Tensor) -> Tensor:
    """r², g², b², rg, gb, br of ``colors`` (B, 3, H, W), as (B, 6, H, W)."""
    return torch.cat([colors * colors, colors * colors.roll(-1, 1)], 1)


class ColorMapNetwork(nn.Module):
    """Coefficients of a colour transform, from the features and colours of subject and scene.

    Means and deviations of a timm backbone's features, beside the distributions of both's colours;
    an MLP makes of them a polynomial for the whole subject. What may differ from place to place is
    found by convolutions. ``backbone`` and ``pretrained`` are as for ``Backbone``.
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
        self.dropout = nn.Dropout(0.2)  # there are few photographs to learn from
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
        """Polynomial (B, 3, 10) and grid (B, 6, 8, 8): what is added to the identity.

        ``composite`` (B, 3, H, W) and ``mask`` (B, 1, H, W) lie in [0, 1].
        """
        features = self.encoder(composite, mask)[self.skipped :]
        parts: list[Tensor] = []
        for feature in features:
            seen = F.adaptive_avg_pool2d(mask, feature.shape[-2:])
            for weight in (seen, 1 - seen):
                parts.extend(_moments(feature, weight))
        own = [distribution(composite, weight) for weight in (mask, 1 - mask)]
        vector = self.features(torch.cat(parts, 1)) + self.colors(torch.cat(own, 1))
        vector = self.joined(self.dropout(vector))
        x = torch.cat([features[-1], F.adaptive_avg_pool2d(mask, features[-1].shape[-2:])], 1)
        x = F.silu(self.entry(x) + self.given(vector)[..., None, None])
        grid = self.local(F.adaptive_avg_pool2d(self.around(x), CELLS))
        wanted = self.wanted(vector).sigmoid()[..., None]  # whether anything is to be changed
        return wanted * self.polynomial(vector).view(-1, 3, MONOMIALS), wanted[..., None] * grid


def _moments(feature: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, C) of a feature (B, C, H, W) under weights (B, 1, H, W)."""
    total = weight.sum((2, 3)).clamp_min(1e-3)
    mean = (feature * weight).sum((2, 3)) / total
    square = (feature**2 * weight).sum((2, 3)) / total
    return mean, (square - mean**2).clamp_min(1e-4).sqrt()


def distribution(composite: Tensor, weight: Tensor) -> Tensor:
    """Of each channel, the soft histogram, the mean and the deviation, as (B, 54)."""
    small = F.adaptive_avg_pool2d(composite, 64), F.adaptive_avg_pool2d(weight, 64)
    color, weight = small[0].flatten(2), small[1].flatten(2)
    total = weight.sum(2, keepdim=True).clamp_min(1e-3)
    # Each value is shared out between the two levels beside it.
    place = color * (LEVELS - 1)
    below = place.detach().long().clamp(0, LEVELS - 2)
    none = color.new_zeros(*color.shape[:2], LEVELS)
    histogram = none.scatter_add(2, below, weight * (below + 1 - place))
    histogram = histogram.scatter_add(2, below + 1, weight * (place - below)) / total
    mean = (color * weight).sum(2, keepdim=True) / total
    spread = ((color - mean) ** 2 * weight).sum(2, keepdim=True) / total
    parts = (4 * histogram, 2 * mean, 4 * (spread + 1e-6).sqrt())
    return torch.cat([part.flatten(1) for part in parts], 1)
