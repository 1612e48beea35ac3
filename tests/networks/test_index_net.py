"""IndexNet: the indices against their formulas, the whole against the published model's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.networks.index_net import (
    AtrousPyramid,
    IndexBlock,
    IndexNetwork,
    from_published,
    index_maps,
    indexed_upsample,
    is_published,
)
from tests.stages.published_index_net import published_alpha, published_state


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    """An image and a trimap."""
    return noise(shape[0], 3, *shape[1:]), (noise(shape[0], 1, *shape[1:], seed=1) * 3).floor() / 2


# Indices


def test_max_unpooling_is_a_special_case() -> None:
    x = noise(2, 3, 6, 8)
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    indices = torch.zeros_like(x).flatten(2).scatter_(2, places.flatten(2), 1).view_as(x)
    assert torch.equal(indexed_upsample(pooled, indices), F.max_unpool2d(pooled, places, 2))


def test_the_maps_are_a_sigmoid_and_its_softmax_over_each_window() -> None:
    raw = 6 * noise(2, 3, 4, 2, 5) - 3
    down, up = index_maps(raw)
    assert down.shape == up.shape == (2, 3, 4, 10)
    for b, c, place, i, j in ((0, 0, 0, 0, 0), (1, 2, 1, 1, 4), (0, 1, 2, 0, 3), (1, 0, 3, 1, 2)):
        window = [1 / (1 + math.exp(-float(v))) for v in raw[b, c, :, i, j]]
        y, x = 2 * i + place // 2, 2 * j + place % 2
        assert up[b, c, y, x].item() == pytest.approx(window[place], rel=1e-5)
        share = math.exp(window[place]) / sum(map(math.exp, window))
        assert down[b, c, y, x].item() == pytest.approx(share, rel=1e-5)
    torch.testing.assert_close(F.avg_pool2d(down, 2), torch.full((2, 3, 2, 5), 0.25))


@pytest.mark.parametrize(("context", "nonlinear"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("family", ["m2o", "o2o", "holistic"])
def test_who_decides_and_how_far_they_see(family: str, context: bool, nonlinear: bool) -> None:
    torch.manual_seed(0)
    block = IndexBlock(3, family, context, nonlinear).double().eval()  # type: ignore[arg-type]
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 3.0)  # amid the ReLU6, where it lets gradients through
    x = (0.1 * noise(1, 3, 12, 12).double()).requires_grad_()
    down, up = block(x)
    channels = 1 if family == "holistic" else 3
    assert down.shape == up.shape == (1, channels, 12, 12)
    (gradient,) = torch.autograd.grad(up[0, 0, 4:6, 4:6].sum(), x)
    seen = gradient[0] != 0
    side = slice(3, 7) if context else slice(4, 6)
    expected = torch.zeros(3, 12, 12, dtype=torch.bool)
    expected[slice(1) if family == "o2o" else slice(3), side, side] = True
    assert torch.equal(seen, expected)


# The network


def test_context_reaches_everywhere_and_trains_on_one_item() -> None:
    torch.manual_seed(0)
    block = AtrousPyramid(4, 8, 6).train()
    x = noise(1, 4, 3, 5).requires_grad_()
    y = block(x)
    assert y.shape == (1, 6, 3, 5)
    y.square().sum().backward()
    assert x.grad is not None
    assert block.whole[1].weight.grad.abs().sum() > 0
    block.eval()
    x = noise(1, 4, 40, 40).requires_grad_()
    block(x)[..., 0, 0].sum().backward()
    assert x.grad is not None
    assert x.grad[..., -1, -1].abs().sum() > 0


def test_training_is_not_stopped_at_0_and_1() -> None:
    torch.manual_seed(0)
    network = IndexNetwork(0.1)
    nn.init.constant_(network.head[1].bias, 6.0)
    image, trimap = inputs(2, 64, 64)
    assert network.train()(image, trimap).max() > 1
    assert network.eval()(image, trimap).max() == 1


# The published model


def test_at_width_1_it_is_the_published_network() -> None:
    network = IndexNetwork()
    assert not is_published(network.state_dict())
    # What the authors' own summary counts: github.com/poppinace/indexnet_matting, issue 11.
    assert sum(p.numel() for p in network.parameters()) == 5_953_515


def test_published_weights_give_what_they_gave() -> None:
    state = published_state("o2o")  # "m2o" is tested as a refiner
    network = IndexNetwork(indexing="o2o").eval()
    network.load_state_dict(from_published(network, state), strict=False)
    image, trimap = inputs(1, 64, 64)
    expected = published_alpha(state, image, trimap)
    assert expected.std() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(network(image, trimap), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 7), (33, 65)])
def test_any_size_is_padded_by_its_border_and_cropped_back(size: tuple[int, int]) -> None:
    network = IndexNetwork(0.1).eval()
    image, trimap = inputs(2, *size)
    more = (0, -size[1] % 32, 0, -size[0] % 32)
    whole = network(F.pad(image, more, mode="replicate"), F.pad(trimap, more, mode="replicate"))
    assert torch.equal(whole[..., : size[0], : size[1]], network(image, trimap))
