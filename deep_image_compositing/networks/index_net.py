"""IndexNet matting: a MobileNetV2 whose pooling and upsampling follow indices that it learns.

Lu, Dai, Shen and Xu, "Indices Matter", ICCV 2019; at width 1 as the authors published it.
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

# Expansion, channels and count of MobileNetV2's blocks, level 1 to 7, after a stem of 32.
BLOCKS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
POOLED = (0, 2, 3, 4, 6)  # levels (0 is the stem) that end in indexed pooling, not strides of 2
DILATIONS = (1, 2, 4, 8)  # of the context's branches at stride 32
STRIDE = 2 ** len(POOLED)


# Learned indices (sections 3 and 4 of the paper)


def index_maps(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Indices for pooling and for upsampling, (B, C, 2H, 2W) in (0, 1) each.

    Both are the sigmoid of ``raw`` (B, C, 4, H, W), the places of each 2 x 2 window row by row; for
    pooling a softmax over each window follows.
    """
    up = raw.sigmoid()
    return tuple(F.pixel_shuffle(x.flatten(1, 2), 2) for x in (up.softmax(2), up))  # type: ignore[return-value]


def indexed_upsample(x: Tensor, indices: Tensor) -> Tensor:
    """The paper's IU: ``x`` (B, C, H, W) by ``indices`` (B, C or 1, 2H, 2W)."""
    return indices * F.interpolate(x, scale_factor=2, mode="nearest")


class IndexBlock(nn.Module):
    """An index network: reads a feature map and says, per window, which places matter.

    ``holistic`` gives one index map for all channels; ``o2o`` gives each channel its own from that
    channel alone, ``m2o`` from all of them. With ``context`` a window is judged by the 4 x 4 pixels
    around it, not its own 2 x 2; if ``nonlinear``, there are a norm, a ReLU6 and a second
    convolution. The published four networks, one a place, are one with four times the channels
    here.
    """

    def __init__(
        self, channels: int, family: Indexing = "m2o", context: bool = True, nonlinear: bool = True
    ) -> None:
        super().__init__()
        check_choice("indexing", family, ("m2o", "o2o", "holistic"))
        self.family = family
        places = 4 if family == "holistic" else 4 * channels
        hidden = places if family != "holistic" else 2 * channels
        # Groups of the second convolution: a place at a time (m2o), or a channel's place (o2o).
        split = {"m2o": 4, "o2o": places, "holistic": 1}[family]
        kernel, padding = (4, 1) if context else (2, 0)
        groups = channels if family == "o2o" else 1
        wide = hidden if nonlinear else places
        # Training begins at little more than average pooling and plain upsampling.
        first = nn.Conv2d(channels, wide, kernel, 2, padding, groups=groups, bias=False)
        self.layers = nn.Sequential(_begin(first, 1.0 if nonlinear else 0.1))
        if nonlinear:
            second = nn.Conv2d(hidden, places, 1, groups=split, bias=False)
            self.layers.extend((nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)))
            self.layers.append(_begin(second, 0.1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``index_maps`` for ``x`` (B, C, H, W), H and W even; C is 1 if holistic."""
        raw = self.layers(x)
        if self.family == "m2o":  # place by place, where the others are channel by channel
            return index_maps(raw.unflatten(1, (4, -1)).transpose(1, 2))
        return index_maps(raw.unflatten(1, (-1, 4)))


def _begin(conv: nn.Conv2d, scale: float = 1.0) -> nn.Conv2d:
    """Random weights after which what is rectified keeps its variance, times ``scale``."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    with torch.no_grad():  # torch counts fans as if every channel went to every other
        conv.weight.mul_(scale * conv.groups**0.5)
    return conv


# The network around them (section 5)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: int | None = None,
) -> list[nn.Module]:
    """A convolution without bias, which keeps the size unless given a padding, and its norm."""
    padding = kernel // 2 * dilation if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, groups, bias=False)
    return [_begin(conv), nn.BatchNorm2d(outputs)]


def _active(*arguments: int) -> list[nn.Module]:
    """The same, and a ReLU6."""
    return [*_conv(*arguments), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    """MobileNetV2's block, its border padded first: widen, filter each channel, narrow, add."""

    def __init__(self, inputs: int, outputs: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = _active(inputs, hidden) if expansion > 1 else []
        each = _active(hidden, hidden, 3, 1, hidden, 0)
        self.layers = nn.Sequential(*widen, *each, *_conv(hidden, outputs))
        self.adds = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(F.pad(x, (1, 1, 1, 1)))
        return x + y if self.adds else y


class _NormOfOne(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where there is but one value a channel."""

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
        self.branches = nn.ModuleList([nn.Sequential(*_active(inputs, branch))])
        for dilation in DILATIONS[1:]:
            each = _active(inputs, inputs, 3, dilation, inputs)
            self.branches.append(nn.Sequential(*each, *_active(inputs, branch)))
        self.whole = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            _begin(nn.Conv2d(inputs, branch, 1, bias=False)),
            _NormOfOne(branch),
            nn.ReLU6(inplace=True),
        )
        self.join = nn.Sequential(*_active(branch * (len(DILATIONS) + 1), outputs))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        parts.append(self.whole(x).expand_as(parts[0]))
        return self.dropout(self.join(torch.cat(parts, 1)))


class IndexNetwork(nn.Module):
    """Alpha of an image and its trimap, at any size.

    Where the encoder pools, its index block tells the pooling what to keep and the decoder, which
    is also given the weighted features, where to put it back. ``channels`` are those of the
    encoder's levels, rounded to multiples of 8; ``width`` is a factor of all, 1 the published
    network, of 5.95 million parameters. ``indexing``, ``context`` and ``nonlinear`` are as for
    ``IndexBlock``; ``dropout``, in [0, 1), acts on the context features in training.
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
        self.encoder = nn.ModuleList([nn.Sequential(*_active(4, channels[0], 3))])
        inputs = channels[0]
        for (expansion, _, count), outputs in zip(BLOCKS, channels[1:], strict=True):
            ends = pairwise([inputs, *[outputs] * count])
            blocks = [InvertedResidual(a, b, expansion) for a, b in ends]
            self.encoder.append(nn.Sequential(*blocks))
            inputs = outputs
        self.indices = nn.ModuleDict(
            {str(i): IndexBlock(channels[i], indexing, context, nonlinear) for i in POOLED}
        )
        self.context = AtrousPyramid(channels[7], _scaled(256, width), channels[6], dropout)
        # Each level of the decoder takes as much from below as it is given from the encoder.
        given = channels[:7]
        self.decoder = nn.ModuleList(
            nn.Sequential(*_active(2 * c, out, 5))
            for c, out in zip(given, (channels[0], *given[:-1]), strict=True)
        )
        # Training begins at an alpha around 1/2.
        narrow = _begin(nn.Conv2d(channels[0], 1, 5, padding=2, bias=False))
        norm = nn.BatchNorm2d(1)
        nn.init.constant_(norm.weight, 0.25)
        nn.init.constant_(norm.bias, 0.5)
        last = nn.Conv2d(1, 1, 5, padding=2, bias=False)
        nn.init.dirac_(last.weight)
        self.head = nn.Sequential(narrow, norm, nn.ReLU6(inplace=True), last)
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """Alpha (B, 1, H, W) in [0, 1], but not cut to that while training."""
        x = torch.cat([(image - self.mean) / self.std, trimap], 1)
        x, (height, width) = pad_to_multiple(x, STRIDE)
        given: list[Tensor] = []
        ups: dict[int, Tensor] = {}
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            if level in POOLED:
                down, ups[level] = self.indices[str(level)](x)
                given.append(down * x)
                x = 4 * F.avg_pool2d(given[-1], 2)  # the sum over each window: indexed pooling
            else:
                given.append(x)
        x = self.context(given.pop())
        for level in reversed(range(len(given))):
            if level in ups:
                x = indexed_upsample(x, ups.pop(level))
            x = self.decoder[level](torch.cat([x, given.pop()], 1))
        alpha = self.head(x)[..., :height, :width]
        return alpha if self.training else alpha.clamp(0, 1)

    def load_encoder(self, pretrained: str) -> None:
        """Begin the encoder as timm's MobileNetV2, whose layers are in the same order.

        ``pretrained`` is as for ``Backbone``. Raises ``UsageError`` unless ``width`` is 1.
        """
        if self.width != 1:
            raise UsageError(f"there are ImageNet weights for width=1 only, got {self.width}")
        source = Backbone("mobilenetv2_100", pretrained, extra_channels=1).body.state_dict()
        own = self.encoder.state_dict()
        self.encoder.load_state_dict(dict(zip(own, source.values(), strict=True)))


# The authors' published weights

# How some names of the published model begin.
PUBLISHED = ("layer0.", "index0.", "dconv_pp.", "decoder_layer0.", "pred.")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` has names as in the authors' checkpoint, ``indexnet_matting.pth.tar``."""
    return any(name.removeprefix("module.").startswith(PUBLISHED) for name in state)


def from_published(network: IndexNetwork, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights (``m2o``, width 1) by the names of ``network``; what it lacks stays."""
    left = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    left = {name: x for name, x in left.items() if not name.endswith("num_batches_tracked")}
    read: dict[str, Tensor] = {}
    for name in network.state_dict():
        names = _published_names(name)
        parts = [left[each] for each in names if each in left]
        if len(parts) < len(names) or len({part.shape for part in parts}) > 1:
            continue
        # Four networks side by side, here one: a channel at a time, or one after the other.
        by_channel = len(names) > 1 and network.indexing == "o2o"
        read[name] = torch.stack(parts, 1).flatten(0, 1) if by_channel else torch.cat(parts)
        for each in names:
            del left[each]
    return {**read, **left}


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
    """What the published model calls a tensor of ours, or the four of which it is made."""
    if found := re.fullmatch(r"indices\.(\d+)\.layers\.(.+)", name):
        return [f"index{found[1]}.indexnet{place}.{found[2]}" for place in (1, 2, 3, 4)]
    return [re.sub(ours, theirs, name) for ours, theirs in _NAMES if re.fullmatch(ours, name)][:1]


def _scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, to the nearest multiple of 8 and at least that."""
    return max(8, int(channels * width / 8 + 0.5) * 8)
