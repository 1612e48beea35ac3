"""The published IndexNet from its names and shapes alone, for tests of reading its weights.

Layout: github.com/poppinace/indexnet_matting, the model that its checkpoint is for.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = ((16, 1, 1), (24, 6, 2), (32, 6, 3), (64, 6, 4), (96, 6, 3), (160, 6, 3), (320, 6, 1))
"""Channels, expansion and number of the blocks of layer1 to layer7."""

POOLED = {0: 32, 2: 24, 3: 32, 4: 64, 6: 160}
"""Channels of the levels with index networks."""

DECODER = {6: (160, 96), 5: (96, 64), 4: (64, 32), 3: (32, 24), 2: (24, 16), 1: (16, 32)}
DECODER |= {0: (32, 32)}
"""Channels that each level of the decoder takes from either side, and that it gives."""


def _convolutions(indexing: str) -> Iterator[tuple[str, str | None, tuple[int, int, int]]]:
    """Name of a convolution, name of its norm, and outputs, inputs a group and kernel."""
    yield "layer0.0", "layer0.1", (32, 4, 3)
    inputs = 32
    for level, (outputs, expansion, count) in enumerate(LEVELS, 1):
        for block in range(count):
            name, hidden = f"layer{level}.{block}.conv", inputs * expansion
            shapes = [(hidden, inputs, 1)] * (expansion > 1)
            shapes += [(hidden, 1, 3), (outputs, hidden, 1)]
            for i, shape in enumerate(shapes):
                yield f"{name}.{3 * i}", f"{name}.{3 * i + 1}", shape
            inputs = outputs
    for level, width in POOLED.items():
        each = 1 if indexing == "o2o" else width
        for place in (1, 2, 3, 4):
            name = f"index{level}.indexnet{place}"
            yield f"{name}.0", f"{name}.1", (width, each, 4)
            yield f"{name}.3", None, (width, each, 1)
    yield "dconv_pp.aspp1.atrous_conv.0", "dconv_pp.aspp1.atrous_conv.1", (256, 320, 1)
    for branch in (2, 3, 4):
        name = f"dconv_pp.aspp{branch}.atrous_conv"
        yield f"{name}.0", f"{name}.1", (320, 1, 3)
        yield f"{name}.3", f"{name}.4", (256, 320, 1)
    yield "dconv_pp.global_avg_pool.1", "dconv_pp.global_avg_pool.2", (256, 320, 1)
    yield "dconv_pp.bottleneck_conv.0", "dconv_pp.bottleneck_conv.1", (160, 1280, 1)
    for level, (taken, given) in DECODER.items():
        name = f"decoder_layer{level}.dconv"
        yield f"{name}.0", f"{name}.1", (given, 2 * taken, 5)
    yield "pred.0.0", "pred.0.1", (1, 32, 5)
    yield "pred.1", None, (1, 1, 5)


def published_state(indexing: str = "m2o") -> dict[str, Tensor]:
    """Random weights under all the published names, after which alphas lie within (0, 1)."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for conv, norm, (outputs, inputs, kernel) in _convolutions(indexing):
        shape = (outputs, inputs, kernel, kernel)
        scale = (inputs * kernel**2) ** -0.5
        state[f"{conv}.weight"] = scale * torch.randn(shape, generator=generator)
        if norm is not None:
            for name, low in (("weight", 0.8), ("bias", 0.0), ("running_var", 0.5)):
                state[f"{norm}.{name}"] = low + torch.rand(outputs, generator=generator)
            state[f"{norm}.running_mean"] = 0.2 * torch.randn(outputs, generator=generator)
            state[f"{norm}.num_batches_tracked"] = torch.tensor(9)
    state["pred.1.weight"] = torch.rand((1, 1, 5, 5), generator=generator) / 50
    return state


def published_alpha(state: dict[str, Tensor], image: Tensor, trimap: Tensor) -> Tensor:
    """What the published model answers for sides that divide by 32, written out plainly."""

    def layer(x: Tensor, conv: str, norm: str | None, act: bool, **options: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        options["groups"] = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, **options)  # type: ignore[arg-type]
        if norm is not None:
            named = [state[f"{norm}.{n}"] for n in ("running_mean", "running_var")]
            x = F.batch_norm(x, *named, state[f"{norm}.weight"], state[f"{norm}.bias"])
        return F.relu6(x) if act else x

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x = torch.cat([(image - mean) / deviation, trimap], 1)
    x = layer(x, "layer0.0", "layer0.1", True, padding=1)
    given, ups = [], {}
    for level in range(8):
        if level:
            _, expansion, count = LEVELS[level - 1]
            for block in range(count):
                name, y = f"layer{level}.{block}.conv", F.pad(x, (1, 1, 1, 1))
                for i in range(last := 1 + (expansion > 1)):
                    y = layer(y, f"{name}.{3 * i}", f"{name}.{3 * i + 1}", True)
                y = layer(y, f"{name}.{3 * last}", f"{name}.{3 * last + 1}", False)
                x = x + y if x.shape == y.shape else y
        if level in POOLED:
            down = torch.zeros_like(x)
            ups[level] = torch.zeros_like(x)
            places = [(0, 0), (0, 1), (1, 0), (1, 1)]
            sigmoids = []
            for place in (1, 2, 3, 4):
                name = f"index{level}.indexnet{place}"
                y = layer(x, f"{name}.0", f"{name}.1", True, stride=2, padding=1)
                sigmoids.append(layer(y, f"{name}.3", None, False).sigmoid())
            total = sum(y.exp() for y in sigmoids)
            for (i, j), y in zip(places, sigmoids, strict=True):
                ups[level][..., i::2, j::2] = y
                down[..., i::2, j::2] = y.exp() / total
            x = x * down
            given.append(x)
            x = sum(x[..., i::2, j::2] for i, j in places)  # type: ignore[assignment]
        else:
            given.append(x)
    x = given.pop()
    name = "dconv_pp.aspp{}.atrous_conv.{}"
    parts = [layer(x, name.format(1, 0), name.format(1, 1), True)]
    for branch, dilation in ((2, 2), (3, 4), (4, 8)):
        wide = {"padding": dilation, "dilation": dilation}
        y = layer(x, name.format(branch, 0), name.format(branch, 1), True, **wide)
        parts.append(layer(y, name.format(branch, 3), name.format(branch, 4), True))
    name = "dconv_pp.global_avg_pool"
    y = layer(x.mean((2, 3), keepdim=True), f"{name}.1", f"{name}.2", True)
    parts.append(y.expand_as(parts[0]))
    name = "dconv_pp.bottleneck_conv"
    x = layer(torch.cat(parts, 1), f"{name}.0", f"{name}.1", True)
    for level in DECODER:
        if level in ups:
            x = ups[level] * x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        name = f"decoder_layer{level}.dconv"
        x = layer(torch.cat([x, given.pop()], 1), f"{name}.0", f"{name}.1", True, padding=2)
    x = layer(x, "pred.0.0", "pred.0.1", True, padding=2)
    return layer(x, "pred.1", None, False, padding=2).clamp(0, 1)
