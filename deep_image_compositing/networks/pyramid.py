"""The segmentation and refinement network: a timm backbone, pyramid pooling, a light decoder."""

from __future__ import annotations

from torch import Tensor, nn

from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.blocks import PyramidPooling, SeparableConv, upsample


class PyramidNetwork(nn.Module):
    """Encoder, pyramid pooling of the deepest feature, and top-down decoder to ``min_stride``.

    The decoder has ``width`` channels; the other arguments are as for ``Backbone``.
    """

    def __init__(
        self,
        backbone: str,
        pretrained: str | None = None,
        width: int = 64,
        extra_channels: int = 0,
        max_stride: int = 32,
        min_stride: int = 4,
        freeze_stride: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = Backbone(backbone, pretrained, extra_channels, max_stride, freeze_stride)
        self.skipped = sum(stride < min_stride for stride in self.encoder.strides)
        channels = self.encoder.channels[self.skipped :]
        self.context = PyramidPooling(channels[-1], width)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[:-1])
        self.smooths = nn.ModuleList(SeparableConv(width, width, 5) for _ in channels[:-1])
        self.head = nn.Sequential(SeparableConv(width, width), nn.Conv2d(width, 1, 1))

    def forward(self, image: Tensor, extra: Tensor | None = None) -> Tensor:
        """Logits (B, 1, H, W) for ``image`` (B, 3, H, W) in [0, 1]."""
        features = self.encoder(image, extra)[self.skipped :]
        x = self.context(features[-1])
        steps = zip(features[:-1], self.laterals, self.smooths, strict=True)
        for feature, lateral, smooth in reversed(list(steps)):
            x = smooth(lateral(feature) + upsample(x, feature))
        return upsample(self.head(x), image)
