"""The fusion network: two encoders, one decoder that fuses them at every scale."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.functional.resize import pad_to_multiple
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.blocks import ConvNormAct, upsample


class Encoder(nn.Module):
    """A plain convolutional encoder: one feature per scale, from full size down.

    Args:
        inputs: channels in.
        widths: channels of each scale, finest first.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        stages = []
        for i, width in enumerate(widths):
            first = ConvNormAct(inputs, width, 3, 1 if i == 0 else 2)
            stages.append(nn.Sequential(first, ConvNormAct(width, width)) if i else first)
            inputs = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, inputs, H, W) to features at strides 1, 2, 4 and so on."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Judge(nn.Module):
    """One number for a whole picture, from the features of a part of it.

    Args:
        inputs: channels in.
        width: channels of what is averaged.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(inputs, width, 1)
        self.decide = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor, where: Tensor) -> Tensor:
        """(B, 1, 1, 1) of features (B, inputs, h, w) where ``where`` (B, 1, H, W) is not 0."""
        size = (features.shape[-2], features.shape[-1])
        share = F.adaptive_avg_pool2d(where.to(features.dtype), size)
        share = share / share.sum((2, 3), keepdim=True).clamp_min(1e-6)
        return self.decide((F.relu(self.look(features)) * share).sum((2, 3), keepdim=True))


class MultiStreamNetwork(nn.Module):
    """Foreground stream and background stream, fused from coarse to fine.

    Each decoder step takes the coarser result and both streams' features of its scale, as a
    Laplacian blend takes both pictures' bands of each level (paper, section 3.3). The paper's
    dense blocks are plain pairs of convolutions here.

    Args:
        foreground_channels: input channels of the foreground stream.
        background_channels: input channels of the background stream; 0 for a single stream.
        outputs: channels out.
        widths: channels of each scale, finest first; the last one has the largest view.
        backbone: a pretrained feature extractor that sees the photograph, the first three
            channels of the foreground stream, and its next two beside it; its features join
            those of the same scale. None for no such help, as published.
        shuffle: stride of the finest scale. At 2, the four pixels of each square come in side by
            side as channels and go out so: several times faster, for corrections that follow
            what came in. 1 is as published.
    """

    def __init__(
        self,
        foreground_channels: int,
        background_channels: int,
        outputs: int,
        widths: tuple[int, ...] = (16, 24, 40, 64, 80),
        backbone: Backbone | None = None,
        shuffle: int = 1,
        judge: int = 0,
    ) -> None:
        super().__init__()
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
        self.judge: Judge | None = None
        if judge:
            self.judge = Judge(self.widths[min(1, deepest)], judge)

    def forward(
        self, foreground: Tensor, background: Tensor | None = None, where: Tensor | None = None
    ) -> Tensor:
        """(B, outputs, H, W) from both streams' inputs; all zero before training.

        Args:
            foreground: (B, foreground_channels, H, W).
            background: (B, background_channels, H, W); None for a single stream.
            where: (B, 1, H, W), not 0 where the judgement looks; only with ``judge``, which makes
                the output (B, outputs + 1, H, W).
        """
        multiple = self.shuffle * 2 ** (len(self.widths) - 1)
        padded, (height, width) = pad_to_multiple(foreground, multiple)
        streams = [self.foreground_encoder(self._unshuffled(padded))]
        if background is not None:
            behind = pad_to_multiple(background, multiple)[0]
            streams.append(self.background_encoder(self._unshuffled(behind)))
        helped: dict[int, Tensor] = {}
        if self.backbone is not None:
            features = self.backbone(padded[:, :3], padded[:, 3:5])
            strides = self.backbone.strides
            pairs = zip(strides, features, strict=True)
            helped = {self._level(s): f for s, f in pairs if s >= self.shuffle}
        levels = [[stream[i] for stream in streams] for i in range(len(self.widths))]
        for level, feature in helped.items():
            levels[level].append(feature)
        x = self.bottom(torch.cat(levels[-1], 1))
        for level in reversed(range(1, len(self.fuse))):
            x = self._fused(level, levels[level], x)
        if self.fuse and not self.training:
            out = self._finest(levels[0], x)
        else:
            out = self.head(self._fused(0, levels[0], x) if self.fuse else x)
        out = self._shuffled(out)[..., :height, :width]
        if self.judge is None:
            return out
        assert where is not None
        judged = self.judge(x, pad_to_multiple(where, multiple)[0])
        return torch.cat([out, judged.expand(-1, -1, height, width)], 1)

    def _fused(self, level: int, bands: list[Tensor], coarse: Tensor) -> Tensor:
        return self.fuse[level](torch.cat([*bands, upsample(coarse, bands[0])], 1))

    def _level(self, stride: int) -> int:
        """The scale that works at ``stride``, 0 the finest."""
        return (stride // self.shuffle).bit_length() - 1

    def _unshuffled(self, x: Tensor) -> Tensor:
        if self.shuffle == 1:
            return x
        return F.pixel_unshuffle(x, self.shuffle).contiguous(memory_format=torch.channels_last)

    def _shuffled(self, x: Tensor) -> Tensor:
        return x if self.shuffle == 1 else F.pixel_shuffle(x, self.shuffle)

    def _finest(self, bands: list[Tensor], coarse: Tensor, rows: int = 64) -> Tensor:
        """The last fusion and the head, in strips of rows: the same numbers in less memory.

        Two 3 x 3 convolutions follow, so a strip is computed with two rows more on either side.
        """
        coarse = upsample(coarse, bands[0])
        height = coarse.shape[-2]
        strips = []
        for top in range(0, height, rows):
            low, high = max(0, top - 2), min(height, top + rows + 2)
            strip = torch.cat([part[:, :, low:high] for part in (*bands, coarse)], 1)
            out = self.head(self.fuse[0](strip))
            strips.append(out[:, :, top - low : top - low + min(rows, height - top)])
        return torch.cat(strips, -2)
