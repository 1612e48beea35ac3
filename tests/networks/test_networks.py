"""The networks alone: sizes, shapes, and what they are before training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.blocks import PyramidPooling
from deep_image_compositing.networks.multi_stream import MultiStreamNetwork
from deep_image_compositing.networks.pyramid import PyramidNetwork


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_pyramid_pooling_sees_the_whole_map_and_trains_on_one_item() -> None:
    block = PyramidPooling(4, 8)
    x = noise(1, 4, 9, 7).requires_grad_()
    block.train()(x)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, -1, -1].abs().sum() > 0


@pytest.mark.parametrize(("extra", "strides"), [(0, (32, 4)), (1, (16, 2))])
def test_pyramid_network_decodes_from_its_deepest_to_its_finest_stride(
    extra: int, strides: tuple[int, int]
) -> None:
    network = PyramidNetwork("test_efficientnet", None, 8, extra, *strides).eval()
    mask = noise(2, 1, 33, 18) if extra else None
    assert network(noise(2, 3, 33, 18), mask).shape == (2, 1, 33, 18)
    assert len(network.laterals) == 3


@pytest.mark.parametrize("size", [(1, 1), (37, 50)])
def test_backbone_helps_the_foreground_stream(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_efficientnet", extra_channels=2, max_stride=8)
    network = MultiStreamNetwork(5, 4, 3, (4, 6, 8, 10), backbone).eval()
    torch.nn.init.normal_(network.head.weight)
    network(torch.rand(2, 5, *size), torch.rand(2, 4, *size)).sum().backward()
    assert backbone.body.conv_stem.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shuffle", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (37, 50), (32, 32)])
def test_a_coarser_finest_scale_answers_at_full_size(size: tuple[int, int], shuffle: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_efficientnet", extra_channels=2, max_stride=8)
    network = MultiStreamNetwork(5, 4, 3, (4, 6, 8), backbone, shuffle).eval()
    inputs = torch.rand(2, 5, *size), torch.rand(2, 4, *size)
    assert torch.equal(network(*inputs), torch.zeros(2, 3, *size))
    torch.nn.init.normal_(network.head.weight)
    answer = network(*inputs)
    assert answer.shape == (2, 3, *size)
    if min(size) > 1:  # each of the pixels that go out together has its own weights
        assert answer.diff(dim=-1).abs().min() > 0


@pytest.mark.parametrize("size", [(150, 70), (64, 64), (1, 1), (200, 33)])
def test_strips_of_rows_change_nothing(size: tuple[int, int]) -> None:
    network = MultiStreamNetwork(11, 4, 5, widths=(4, 6, 8))
    torch.nn.init.normal_(network.head.weight)
    foreground, background = torch.rand(1, 11, *size), torch.rand(1, 4, *size)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        whole = network(foreground, background)
        strips = network.eval()(foreground, background)
    assert strips.shape == whole.shape == (1, 5, *size)
    torch.testing.assert_close(strips, whole)
