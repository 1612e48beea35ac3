"""EfficientNet-Lite0 features, as timm's ``tf_efficientnet_lite0`` but without importing timm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

NAME = "tf_efficientnet_lite0"  # timm's name
MEAN = STD = (0.5, 0.5, 0.5)  # of its input

# Each stage's kernel, stride, expansion, channels and blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
FEATURES: tuple[dict[str, Any], ...] = tuple(
    {"module": f"blocks.{stage}", "num_chs": _STAGES[stage][3], "reduction": stride}
    for stage, stride in ((0, 2), (1, 4), (2, 8), (4, 16), (6, 32))
)
"""The available features, described as timm does: each one's stage, channels and stride."""


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, ICML 2019) with ``features``, some of ``FEATURES``."""

    def __init__(self, features: Sequence[dict[str, Any]] = FEATURES) -> None:
        super().__init__()
        self.outputs = {feature["module"] for feature in features}
        self.conv_stem = SameConv(3, 32, 3, 2)
        self.bn1 = NormAct(32)
        self.blocks = nn.Sequential()
        inputs = 32
        for kernel, stride, expansion, outputs, count in _STAGES:
            stage = nn.Sequential()
            for number in range(count):
                step = stride if number == 0 else 1
                stage.append(Block(inputs, outputs, kernel, step, expansion))
                inputs = outputs
            self.blocks.append(stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as in the original TensorFlow code
                kernel = module.kernel_size[0]
                fan_out = kernel * kernel * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (B, C, ceil(H / stride), ceil(W / stride)) of normalised ``x`` (B, 3, H, W)."""
        x = self.bn1(self.conv_stem(x))
        features = []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if f"blocks.{number}" in self.outputs:
                features.append(x)
        return features


class Block(nn.Sequential):
    """MobileNet's block: pointwise expansion (if any), depthwise convolution, projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.skips = inputs == outputs and stride == 1
        inner = expansion * inputs
        if expansion == 1:  # timm's names, by which weights are stored
            self.conv_dw = SameConv(inner, inner, kernel, stride, groups=inner)
            self.bn1 = NormAct(inner)
            self.conv_pw = SameConv(inner, outputs, 1)
            self.bn2 = NormAct(outputs, act=False)
        else:
            self.conv_pw = SameConv(inputs, inner, 1)
            self.bn1 = NormAct(inner)
            self.conv_dw = SameConv(inner, inner, kernel, stride, groups=inner)
            self.bn2 = NormAct(inner)
            self.conv_pwl = SameConv(inner, outputs, 1)
            self.bn3 = NormAct(outputs, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + x if self.skips else y


class SameConv(nn.Conv2d):
    """A convolution without bias and with TensorFlow's padding: odd pixels at bottom and right."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride > 1:
            overlap = kernel - stride  # never negative here
            sizes = [(n + stride - 1) // stride * stride for n in x.shape[-2:]]
            tall, wide = (overlap + m - n for m, n in zip(sizes, x.shape[-2:], strict=True))
            x = F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        return super().forward(x)


class NormAct(nn.BatchNorm2d):
    """Batch norm followed by ReLU6."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu6(x, inplace=True) if self.act else x
