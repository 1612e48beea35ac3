"""The fusion network: two encoders, and a decoder that fuses them at every scale."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.functional.resize import pad_to_multiple
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.blocks import ConvNormAct, upsample


class Encoder(nn.Module):
    """A plain encoder with one feature map per scale, of ``widths`` channels, finest first."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        stages = []
        for i, width in enumerate(widths):
            first = ConvNormAct(inputs, width, 3, 1 if i == 0 else 2)
            stages.append(nn.Sequential(first, ConvNormAct(width, width)) if i else first)
            inputs = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class MultiStreamNetwork(nn.Module):
    """Foreground stream and background stream, fused from coarse to fine (paper, section 3.3).

    Each decoder step takes the coarser result and both streams' features at its scale. ``widths``
    are the channels of each scale, finest first; with no background channels there is one stream.

    Not in the paper: ``backbone``, applied to the first five channels of the foreground stream (RGB
    and two extra channels), whose features are concatenated at their scale; and ``shuffle``, the
    stride of the finest scale: above 1, inputs and outputs are pixel-shuffled, which is several
    times faster.
    """

    def __init__(
        self,
        foreground_channels: int,
        background_channels: int,
        outputs: int,
        widths: tuple[int, ...],
        backbone: Backbone | None = None,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        self.channels = (foreground_channels, background_channels)
        self.widths = tuple(widths)
        self.shuffle = shuffle
        self.backbone = backbone
        extra = dict.fromkeys(range(len(self.widths)), 0)
        if backbone is not None:
            extra |= {
                self._level(stride): channels
                for stride, channels in zip(backbone.strides, backbone.channels, strict=True)
                if stride >= shuffle
            }
        pixels = shuffle**2
        self.foreground_encoder = Encoder(pixels * foreground_channels, self.widths)
        streams = 1
        if background_channels:
            self.background_encoder = Encoder(pixels * background_channels, self.widths)
            streams = 2
        deepest = len(self.widths) - 1
        self.bottom = ConvNormAct(streams * self.widths[-1] + extra[deepest], self.widths[-1])
        self.fuse = nn.ModuleList(
            ConvNormAct(streams * fine + extra[level] + coarse, fine)
            for level, (fine, coarse) in enumerate(pairwise(self.widths))
        )
        self.head = nn.Conv2d(self.widths[0], pixels * outputs, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, foreground: Tensor, background: Tensor | None = None) -> Tensor:
        """Outputs (B, outputs, H, W) for the streams' inputs; zero before training."""
        multiple = self.shuffle * 2 ** (len(self.widths) - 1)
        padded, (height, width) = pad_to_multiple(foreground, multiple)
        extra: dict[int, Tensor] = {}
        if self.backbone is not None:  # first, as it takes the most memory
            features = self.backbone(padded[:, :3], padded[:, 3:5])
            pairs = zip(self.backbone.strides, features, strict=True)
            extra = {self._level(s): f for s, f in pairs if s >= self.shuffle}
        streams = [self.foreground_encoder(self._unshuffle(padded))]
        if background is not None:
            padded = pad_to_multiple(background, multiple)[0]
            streams.append(self.background_encoder(self._unshuffle(padded)))
        levels = [[stream[i] for stream in streams] for i in range(len(self.widths))]
        for level, feature in extra.items():
            levels[level].append(feature)
        x = self.bottom(torch.cat(levels[-1], 1))
        for level in reversed(range(len(self.fuse))):
            skips = levels[level]
            if level == 0 and not self.training and not torch.compiler.is_exporting():
                return self._shuffle(self._finest(skips, x))[..., :height, :width]
            x = self.fuse[level](torch.cat([*skips, upsample(x, skips[0])], 1))
        return self._shuffle(self.head(x))[..., :height, :width]

    def _level(self, stride: int) -> int:
        """Index of the scale at ``stride``, 0 for the finest."""
        return (stride // self.shuffle).bit_length() - 1

    def _unshuffle(self, x: Tensor) -> Tensor:
        if self.shuffle == 1:
            return x
        return F.pixel_unshuffle(x, self.shuffle).contiguous(memory_format=torch.channels_last)

    def _shuffle(self, x: Tensor) -> Tensor:
        return x if self.shuffle == 1 else F.pixel_shuffle(x, self.shuffle)

    def _finest(self, skips: list[Tensor], coarse: Tensor, rows: int = 64) -> Tensor:
        """Last fusion and head in strips, overlapping by two rows, to save memory."""
        coarse = upsample(coarse, skips[0])
        height = coarse.shape[-2]
        strips = []
        for top in range(0, height, rows):
            low, high = max(0, top - 2), min(height, top + rows + 2)
            strip = torch.cat([x[:, :, low:high] for x in (*skips, coarse)], 1)
            out = self.head(self.fuse[0](strip))
            strips.append(out[:, :, top - low : top - low + min(rows, height - top)])
        return torch.cat(strips, -2)
