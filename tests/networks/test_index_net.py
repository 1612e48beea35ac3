"""IndexNet: the indices against their formulas, the whole against the published model's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.networks.index_net import (
    AtrousPyramid,
    IndexBlock,
    IndexNetwork,
    index_maps,
    indexed_pool,
    indexed_upsample,
    is_published,
    read_published,
)
from tests.stages.published_index_net import published_alpha, published_state


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    """An image and a trimap."""
    return noise(shape[0], 3, *shape[1:]), (noise(shape[0], 1, *shape[1:], seed=1) * 3).floor() / 2


# Indices


def test_max_pooling_and_unpooling_are_special_cases() -> None:
    x = noise(2, 3, 6, 8)
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    indices = torch.zeros_like(x).flatten(2).scatter_(2, places.flatten(2), 1).view_as(x)
    assert torch.equal(indexed_pool(x, indices), pooled)
    assert torch.equal(indexed_upsample(pooled, indices), F.max_unpool2d(pooled, places, 2))


def test_average_pooling_and_nearest_upsampling_are_special_cases() -> None:
    x = noise(2, 3, 6, 8)
    quarters, ones = torch.full_like(x[:, :1], 0.25), torch.ones_like(x[:, :1])
    torch.testing.assert_close(indexed_pool(x, quarters), F.avg_pool2d(x, 2))
    small = indexed_pool(x, quarters)
    expected = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(indexed_upsample(small, ones), expected)


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


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("context", [False, True])
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


def test_there_is_no_other_family() -> None:
    with pytest.raises(UsageError, match="indexing must be 'm2o', 'o2o' or 'holistic', got 'max'"):
        IndexNetwork(0.1, "max")  # type: ignore[arg-type]


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


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 65), (64, 32)])
def test_any_size_is_padded_by_its_border_and_cropped_back(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = IndexNetwork(0.1).eval()
    image, trimap = inputs(2, *size)
    alpha = network(image, trimap)
    assert alpha.shape == (2, 1, *size)
    assert 0 <= alpha.min() <= alpha.max() <= 1
    more = (0, -size[1] % 32, 0, -size[0] % 32)
    whole = network(F.pad(image, more, mode="replicate"), F.pad(trimap, more, mode="replicate"))
    assert torch.equal(whole[..., : size[0], : size[1]], alpha)


def test_training_is_not_stopped_at_0_and_1() -> None:
    torch.manual_seed(0)
    network = IndexNetwork(0.1)
    nn.init.constant_(network.head[1].bias, 6.0)
    image, trimap = inputs(2, 64, 64)
    assert network.train()(image, trimap).max() > 1
    assert network.eval()(image, trimap).max() == 1


def test_it_learns() -> None:
    torch.manual_seed(0)
    network = IndexNetwork(0.1, dropout=0).train()
    image, _ = inputs(2, 64, 64)
    alpha, trimap = image[:, :1].round(), torch.full((2, 1, 64, 64), 0.5)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = (network(image, trimap) - alpha).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.6
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 0}, "width must be above 0 and at most 10, got 0"),
        ({"width": float("nan")}, "width must be above 0"),
        ({"dropout": 1}, r"must lie in \[0, 1\), got 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        IndexNetwork(**options)  # type: ignore[arg-type]


# The published model


def test_at_width_1_it_is_the_published_network() -> None:
    network = IndexNetwork().eval()
    state = published_state()
    assert is_published(state)
    assert not is_published(network.state_dict())
    # What the authors' own summary counts: github.com/poppinace/indexnet_matting, issue 11.
    assert sum(p.numel() for p in network.parameters()) == 5_953_515
    network.load_state_dict(read_published(network, state))
    image, trimap = inputs(1, 64, 96)
    expected = published_alpha(state, image, trimap)
    assert expected.std() > 0.01
    assert 0 < expected.min() < expected.max() < 1
    with torch.no_grad():
        torch.testing.assert_close(network(image, trimap), expected, rtol=1e-3, atol=1e-4)


def test_one_to_one_networks_are_read_channel_by_channel() -> None:
    state = published_state("o2o")
    network = IndexNetwork(indexing="o2o").eval()
    network.load_state_dict(read_published(network, state))
    image, trimap = inputs(1, 32, 32)
    expected = published_alpha(state, image, trimap)
    with torch.no_grad():
        torch.testing.assert_close(network(image, trimap), expected, rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_named() -> None:
    state = {f"module.{name}": value for name, value in published_state().items()}
    network = IndexNetwork()
    del state["module.index3.indexnet2.0.weight"]
    with pytest.raises(WeightsError, match=r"': index3\.indexnet2\.0\.weight is missing\. The"):
        read_published(network, state)
    state["module.index3.indexnet2.0.weight"] = torch.zeros(32, 1, 4, 4)
    state["module.extra"] = torch.zeros(1)
    said = r"weight has shape \(32, 1, 4, 4\), expected \(32, 32, 4, 4\), extra is unknown\. The"
    with pytest.raises(WeightsError, match=said):
        read_published(network, state)
    with pytest.raises(WeightsError, match=r"width=0\.5 and .*layer0\.0\.weight has .* more\. The"):
        read_published(IndexNetwork(0.5), state)


def test_counters_of_norms_may_be_missing() -> None:
    state = {k: v for k, v in published_state().items() if not k.endswith("batches_tracked")}
    network = IndexNetwork()
    assert read_published(network, state).keys() == network.state_dict().keys()
