"""The fusion network: two encoders, one decoder that fuses them at every scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deep_image_compositing.functional.resize import pad_to_multiple
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
    """

    def __init__(
        self,
        foreground_channels: int,
        background_channels: int,
        outputs: int,
        widths: tuple[int, ...] = (16, 24, 40, 64, 80),
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.foreground_encoder = Encoder(foreground_channels, self.widths)
        streams = 1
        if background_channels:
            self.background_encoder = Encoder(background_channels, self.widths)
            streams = 2
        self.bottom = ConvNormAct(streams * self.widths[-1], self.widths[-1])
        self.fuse = nn.ModuleList(
            ConvNormAct(streams * fine + coarse, fine)
            for fine, coarse in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        self.head = nn.Conv2d(self.widths[0], outputs, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, foreground: Tensor, background: Tensor | None = None) -> Tensor:
        """(B, outputs, H, W) from both streams' inputs; all zero before training."""
        multiple = 2 ** (len(self.widths) - 1)
        padded, (height, width) = pad_to_multiple(foreground, multiple)
        streams = [self.foreground_encoder(padded)]
        if background is not None:
            streams.append(self.background_encoder(pad_to_multiple(background, multiple)[0]))
        x = self.bottom(torch.cat([stream.pop() for stream in streams], 1))
        for level in reversed(range(len(self.fuse))):
            bands = [stream.pop() for stream in streams] if level else [s[0] for s in streams]
            if level == 0 and not self.training:
                return self._finest(bands, x)[..., :height, :width]
            x = self.fuse[level](torch.cat([*bands, upsample(x, bands[0])], 1))
        return self.head(x)[..., :height, :width]

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
