"""Convolution blocks shared by several networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU; (B, in, H, W) to (B, out, ceil(H/stride), ceil(W/stride))."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class SeparableConv(nn.Sequential):
    """Depthwise k x k convolution followed by a pointwise one, each with norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        depthwise = ConvNormAct(inputs, inputs, kernel, groups=inputs)
        super().__init__(*depthwise, *ConvNormAct(inputs, outputs, 1))


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al., CVPR 2017) over grids of ``bins`` x ``bins`` cells."""

    bins = (1, 2, 3, 6)

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        branch = max(8, outputs // len(self.bins))
        # Group norm, as batch norm fails on a 1 x 1 grid in small batches.
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, branch, 1, bias=False), nn.GroupNorm(1, branch), nn.ReLU()
            )
            for _ in self.bins
        )
        self.fuse = ConvNormAct(inputs + branch * len(self.bins), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        parts = [x]
        for bins, branch in zip(self.bins, self.branches, strict=True):
            pool = _pooled if torch.compiler.is_exporting() else F.adaptive_avg_pool2d
            parts.append(upsample(branch(pool(x, bins)), x))
        return self.fuse(torch.cat(parts, dim=1))


def _pooled(x: Tensor, bins: int) -> Tensor:
    """``F.adaptive_avg_pool2d`` as two matrix products, which ONNX supports for any size."""

    def averaging_matrix(size: int) -> Tensor:  # (bins, size)
        cell = torch.arange(bins, device=x.device)[:, None]
        pixel = torch.arange(size, device=x.device)[None]
        low, high = cell * size // bins, ((cell + 1) * size + bins - 1) // bins
        inside = ((pixel >= low) & (pixel < high)).to(x.dtype)
        return inside / (high - low).to(x.dtype)

    return averaging_matrix(x.shape[-2]) @ x @ averaging_matrix(x.shape[-1]).T


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize of ``x`` to the height and width of ``like``."""
    if not torch.compiler.is_exporting() and x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
