"""IndexNet matting: a MobileNetV2 with learned indices for pooling and upsampling.

Lu, Dai, Shen and Xu, "Indices Matter", ICCV 2019; width 1 is the published network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.resize import pad_to_multiple
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.options import check_choice

Indexing = Literal["m2o", "o2o", "holistic"]

# Expansion, channels and count of MobileNetV2's blocks at levels 1 to 7, after a stem of 32.
BLOCKS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
POOLED = (0, 2, 3, 4, 6)  # levels (0 is the stem) with indexed pooling instead of a stride of 2
DILATIONS = (1, 2, 4, 8)  # of the context branches at stride 32
STRIDE = 2 ** len(POOLED)


# Learned indices (sections 3 and 4 of the paper)


def index_maps(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Indices for pooling and for upsampling, (B, C, 2H, 2W) in (0, 1) each.

    Both are the sigmoid of ``raw`` (B, C, 4, H, W), which holds each 2 x 2 window row by row; for
    pooling, a softmax over each window follows.
    """
    up = raw.sigmoid()
    return tuple(F.pixel_shuffle(x.flatten(1, 2), 2) for x in (up.softmax(2), up))  # type: ignore[return-value]


def indexed_upsample(x: Tensor, indices: Tensor) -> Tensor:
    """The paper's IU: upsample ``x`` (B, C, H, W) by ``indices`` (B, C or 1, 2H, 2W)."""
    return indices * F.interpolate(x, scale_factor=2, mode="nearest")


class IndexBlock(nn.Module):
    """An index network, which predicts the importance of each position in a 2 x 2 window.

    ``holistic`` predicts one index map for all channels; ``o2o`` predicts each channel's map from
    that channel, ``m2o`` from all channels. With ``context`` it sees 4 x 4 instead of 2 x 2 pixels
    per window; ``nonlinear`` adds a norm, a ReLU6 and a second convolution. The four published
    networks, one per position, are combined into one with four times the channels.
    """

    def __init__(
        self, channels: int, family: Indexing = "m2o", context: bool = True, nonlinear: bool = True
    ) -> None:
        super().__init__()
        check_choice("indexing", family, ("m2o", "o2o", "holistic"))
        self.family = family
        outputs = 4 if family == "holistic" else 4 * channels
        hidden = 2 * channels if family == "holistic" else outputs
        kernel, padding = (4, 1) if context else (2, 0)
        groups = channels if family == "o2o" else 1
        width = hidden if nonlinear else outputs
        # Small weights: training starts close to average pooling and nearest upsampling.
        first = nn.Conv2d(channels, width, kernel, 2, padding, groups=groups, bias=False)
        self.layers = nn.Sequential(_initialize(first, 1.0 if nonlinear else 0.1))
        if nonlinear:
            # One group per position (m2o), or per channel and position (o2o).
            groups = {"m2o": 4, "o2o": outputs, "holistic": 1}[family]
            second = nn.Conv2d(hidden, outputs, 1, groups=groups, bias=False)
            self.layers.extend((nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)))
            self.layers.append(_initialize(second, 0.1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``index_maps`` for ``x`` (B, C, H, W) with even H and W; they have C = 1 if holistic."""
        raw = self.layers(x)
        if self.family == "m2o":  # ordered by position, the other families by channel
            return index_maps(raw.unflatten(1, (4, -1)).transpose(1, 2))
        return index_maps(raw.unflatten(1, (-1, 4)))


def _initialize(conv: nn.Conv2d, scale: float = 1.0) -> nn.Conv2d:
    """Kaiming initialisation, corrected for groups and times ``scale``; returns ``conv``."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    with torch.no_grad():  # torch computes the fan as if there were no groups
        conv.weight.mul_(scale * conv.groups**0.5)
    return conv


# The full network (section 5)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: int | None = None,
) -> list[nn.Module]:
    """A bias-free convolution, by default with same padding, and a batch norm."""
    padding = kernel // 2 * dilation if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, groups, bias=False)
    return [_initialize(conv), nn.BatchNorm2d(outputs)]


def _conv_act(*arguments: int) -> list[nn.Module]:
    """``_conv`` followed by a ReLU6."""
    return [*_conv(*arguments), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    """MobileNetV2's inverted residual block, which pads its input before the first convolution."""

    def __init__(self, inputs: int, outputs: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = _conv_act(inputs, hidden) if expansion > 1 else []
        depthwise = _conv_act(hidden, hidden, 3, 1, hidden, 0)
        self.layers = nn.Sequential(*expand, *depthwise, *_conv(hidden, outputs))
        self.adds = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(F.pad(x, (1, 1, 1, 1)))
        return x + y if self.adds else y


class _SingleValueNorm(nn.BatchNorm2d):
    """Batch norm that uses running statistics if there is only one value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps
            )
        return super().forward(x)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., ECCV 2018) of five separable branches."""

    def __init__(self, inputs: int, branch: int, outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(*_conv_act(inputs, branch))])
        for dilation in DILATIONS[1:]:
            depthwise = _conv_act(inputs, inputs, 3, dilation, inputs)
            self.branches.append(nn.Sequential(*depthwise, *_conv_act(inputs, branch)))
        self.whole = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            _initialize(nn.Conv2d(inputs, branch, 1, bias=False)),
            _SingleValueNorm(branch),
            nn.ReLU6(inplace=True),
        )
        self.join = nn.Sequential(*_conv_act(branch * (len(DILATIONS) + 1), outputs))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        features = [branch(x) for branch in self.branches]
        features.append(self.whole(x).expand_as(features[0]))
        return self.dropout(self.join(torch.cat(features, 1)))


class IndexNetwork(nn.Module):
    """Predicts alpha from an image and a trimap of any size.

    At each pooled level of the encoder, an index block predicts the weights of the pooling and of
    the matching upsampling in the decoder, which also takes the weighted features. ``channels`` are
    those of the encoder's levels, in multiples of 8; ``width`` is a factor on all of them, 1 for
    the published network with 5.95 million parameters. ``indexing``, ``context`` and ``nonlinear``
    are as for ``IndexBlock``; ``dropout``, in [0, 1), acts on the context features in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: float = 1.0,
        indexing: Indexing = "m2o",
        context: bool = True,
        nonlinear: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < width <= 10:
            raise UsageError(f"width must be above 0 and at most 10, got {width}")
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is a share and must lie in [0, 1), got {dropout}")
        self.width = width
        self.indexing = indexing
        self.channels = channels = [_scaled(c, width) for c in (32, *(b[1] for b in BLOCKS))]
        self.encoder = nn.ModuleList([nn.Sequential(*_conv_act(4, channels[0], 3))])
        for (expansion, _, count), ends in zip(BLOCKS, pairwise(channels), strict=True):
            sizes = pairwise([ends[0], *[ends[1]] * count])
            blocks = [InvertedResidual(a, b, expansion) for a, b in sizes]
            self.encoder.append(nn.Sequential(*blocks))
        self.indices = nn.ModuleDict(
            {str(i): IndexBlock(channels[i], indexing, context, nonlinear) for i in POOLED}
        )
        self.context = AtrousPyramid(channels[7], _scaled(256, width), channels[6], dropout)
        # Each level takes as many channels from the coarser level as from the encoder.
        self.decoder = nn.ModuleList(
            nn.Sequential(*_conv_act(2 * c, out, 5))
            for c, out in zip(channels[:7], (channels[0], *channels[:6]), strict=True)
        )
        # Training starts at an alpha around 0.5.
        narrow = _initialize(nn.Conv2d(channels[0], 1, 5, padding=2, bias=False))
        norm = nn.BatchNorm2d(1)
        nn.init.constant_(norm.weight, 0.25)
        nn.init.constant_(norm.bias, 0.5)
        last = nn.Conv2d(1, 1, 5, padding=2, bias=False)
        nn.init.dirac_(last.weight)
        self.head = nn.Sequential(narrow, norm, nn.ReLU6(inplace=True), last)
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """Alpha (B, 1, H, W), clamped to [0, 1] except in training."""
        x = torch.cat([(image - self.mean) / self.std, trimap], 1)
        x, (height, width) = pad_to_multiple(x, STRIDE)
        skips: list[Tensor] = []
        ups: dict[int, Tensor] = {}
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            if level in POOLED:
                down, ups[level] = self.indices[str(level)](x)
                skips.append(down * x)
                x = 4 * F.avg_pool2d(skips[-1], 2)  # indexed pooling: the sum over each window
            else:
                skips.append(x)
        x = self.context(skips.pop())
        for level in reversed(range(len(skips))):
            if level in ups:
                x = indexed_upsample(x, ups.pop(level))
            x = self.decoder[level](torch.cat([x, skips.pop()], 1))
        alpha = self.head(x)[..., :height, :width]
        return alpha if self.training else alpha.clamp(0, 1)

    def load_encoder(self, pretrained: str) -> None:
        """Initialise the encoder from timm's MobileNetV2, whose layers are in the same order.

        ``pretrained`` is as for ``Backbone``. Raises ``UsageError`` unless ``width`` is 1.
        """
        if self.width != 1:
            raise UsageError(f"there are ImageNet weights for width=1 only, got {self.width}")
        source = Backbone("mobilenetv2_100", pretrained, extra_channels=1).body.state_dict()
        names = self.encoder.state_dict()
        self.encoder.load_state_dict(dict(zip(names, source.values(), strict=True)))


# The authors' checkpoint

PUBLISHED = ("layer0.", "index0.", "dconv_pp.", "decoder_layer0.", "pred.")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` has the names of the authors' checkpoint ``indexnet_matting.pth.tar``."""
    return any(name.removeprefix("module.").startswith(PUBLISHED) for name in state)


def from_published(network: IndexNetwork, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the authors' weights to the names of ``network``; unknown names stay."""
    rest = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    rest = {name: x for name, x in rest.items() if not name.endswith("num_batches_tracked")}
    translated: dict[str, Tensor] = {}
    for name in network.state_dict():
        sources = _published_names(name)
        parts = [rest[source] for source in sources if source in rest]
        if len(parts) < len(sources) or len({part.shape for part in parts}) > 1:
            continue
        # Combine the four index networks into one, ordered by channel (o2o) or by position.
        by_channel = len(sources) > 1 and network.indexing == "o2o"
        translated[name] = torch.stack(parts, 1).flatten(0, 1) if by_channel else torch.cat(parts)
        for source in sources:
            del rest[source]
    return {**translated, **rest}


_NAMES = (
    (r"encoder\.0\.(.+)", r"layer0.\1"),
    (r"encoder\.(\d+)\.(\d+)\.layers\.(.+)", r"layer\1.\2.conv.\3"),
    (r"context\.whole\.(.+)", r"dconv_pp.global_avg_pool.\1"),
    (r"context\.join\.(.+)", r"dconv_pp.bottleneck_conv.\1"),
    *(
        (rf"context\.branches\.{i}\.(.+)", rf"dconv_pp.aspp{i + 1}.atrous_conv.\1")
        for i in range(4)
    ),
    (r"decoder\.(\d+)\.(.+)", r"decoder_layer\1.dconv.\2"),
    (r"head\.3\.(.+)", r"pred.1.\1"),
    (r"head\.(.+)", r"pred.0.\1"),
)


def _published_names(name: str) -> list[str]:
    """Published name of a tensor, or the names of the four that it combines."""
    if match := re.fullmatch(r"indices\.(\d+)\.layers\.(.+)", name):
        return [f"index{match[1]}.indexnet{number}.{match[2]}" for number in (1, 2, 3, 4)]
    return [re.sub(ours, theirs, name) for ours, theirs in _NAMES if re.fullmatch(ours, name)][:1]


def _scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to a multiple of 8 and at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)
