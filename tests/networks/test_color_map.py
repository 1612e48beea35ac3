"""The network of the harmonizer ``color_map`` alone: what it is told, and what it answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deep_image_compositing.networks.color_map import (
    CELLS,
    LEVELS,
    LOCAL,
    MONOMIALS,
    ColorMapNetwork,
    distribution,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network() -> ColorMapNetwork:
    torch.manual_seed(0)
    return ColorMapNetwork("test_efficientnet", width=16).eval()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (100, 33)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_before_training_nothing_is_moved(
    network: ColorMapNetwork, size: tuple[int, int], share: float
) -> None:
    mask = torch.full((2, 1, *size), share)
    polynomial, grid = network(noise(2, 3, *size), mask)
    assert torch.equal(polynomial, torch.zeros(2, 3, MONOMIALS))
    assert torch.equal(grid, torch.zeros(2, LOCAL, CELLS, CELLS))


def test_both_answers_depend_on_the_picture_and_on_the_mask() -> None:
    torch.manual_seed(0)
    network = ColorMapNetwork("test_efficientnet", width=16).eval()
    for head in (network.polynomial, network.local):
        torch.nn.init.normal_(head.weight)
    left, right = torch.zeros(2, 1, 1, 32, 32)
    left[..., :16], right[..., 16:] = 1, 1
    answers = [
        network(noise(1, 3, 32, 32, seed=seed), mask) for seed, mask in ((0, left), (1, left))
    ]
    answers.append(network(noise(1, 3, 32, 32), right))
    for part in (0, 1):
        first, picture, mask = (answer[part] for answer in answers)
        assert (first - picture).abs().max() > 1e-4
        assert (first - mask).abs().max() > 1e-4


def test_a_distribution_is_that_of_what_counts() -> None:
    picture, weight = noise(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    weight[..., :20] = 1
    picture[:, 0, :, :20], picture[:, 1, :, :20] = 3 / 15, 3.5 / 15
    found = distribution(picture, weight)[0]
    histogram, mean, deviation = found.split((3 * LEVELS, 3, 3))
    red, green, blue = (histogram / 4).view(3, LEVELS)
    one = torch.nn.functional.one_hot(torch.tensor(3), LEVELS).float()
    assert torch.allclose(red, one, atol=1e-5)
    assert torch.allclose(green[3:5], torch.full((2,), 0.5), atol=1e-5)  # half way between levels
    assert float(blue.sum()) == pytest.approx(1, abs=1e-5)
    assert (mean / 2).tolist()[:2] == pytest.approx([3 / 15, 3.5 / 15], abs=1e-5)
    inside = picture[0, 2, :, :20]
    assert float(mean[2]) / 2 == pytest.approx(float(inside.mean()), abs=1e-4)
    assert float(deviation[2]) / 4 == pytest.approx(float(inside.std()), abs=1e-2)
    # What does not count may be anything.
    picture[..., 20:] = 0
    assert torch.equal(distribution(picture, weight)[0], found)
    assert distribution(picture, torch.zeros_like(weight)).isfinite().all()


def test_the_default_network_is_small() -> None:
    network = ColorMapNetwork("tf_efficientnet_lite0")
    assert sum(p.numel() for p in network.parameters()) < 3_000_000
