"""Pyramids of any size, and the locality of the Laplacian blend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import filter2d_separable
from torch import Tensor

from deep_image_compositing.functional.pyramids import (
    gaussian_pyramid,
    laplacian_blend,
    max_levels,
)

SIDES = st.integers(1, 67)


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, height, width, generator=generator)


KERNEL = torch.tensor([[1, 4, 6, 4, 1]]) / 16


def reduced(x: Tensor) -> Tensor:
    """A level of the textbook's pyramid by kornia's filters."""
    return filter2d_separable(x, KERNEL, KERNEL, "replicate")[..., ::2, ::2]


def expanded(x: Tensor, like: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    spread = x.new_zeros(*x.shape[:2], *(2 * side for side in padded.shape[-2:]))
    spread[..., ::2, ::2] = 4 * padded
    smooth = filter2d_separable(spread, KERNEL, KERNEL, "constant")[..., 2:, 2:]
    return smooth[..., : like.shape[-2], : like.shape[-1]]


def textbook_blend(front: Tensor, back: Tensor, alpha: Tensor, levels: int) -> Tensor:
    if levels == 1:
        return alpha * front + (1 - alpha) * back
    low_front, low_back = reduced(front), reduced(back)
    details = front - expanded(low_front, front), back - expanded(low_back, back)
    below = textbook_blend(low_front, low_back, reduced(alpha), levels - 1)
    return alpha * details[0] + (1 - alpha) * details[1] + expanded(below, front)


def test_max_levels_reaches_one_pixel() -> None:
    for size in ((1, 1), (2, 1), (3, 5), (64, 64), (65, 2), (768, 513)):
        levels = max_levels(*size)
        shapes = [level.shape[-2:] for level in gaussian_pyramid(torch.zeros(1, 1, *size), levels)]
        assert shapes[-1] == (1, 1)
        assert (1, 1) not in shapes[:-1]


@settings(max_examples=10, deadline=None)
@given(height=SIDES, width=SIDES, levels=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_the_blend_is_the_textbook_blend(height: int, width: int, levels: int, seed: int) -> None:
    front, back = picture(height, width, seed), picture(height, width, seed + 1)
    alpha = picture(height, width, seed + 2, channels=1)
    levels = min(levels, max_levels(height, width))
    expected = textbook_blend(front, back, alpha, levels)
    assert torch.allclose(laplacian_blend(front, back, alpha, levels), expected, atol=2e-6)


@pytest.mark.parametrize(("levels", "edge"), [(2, 140), (3, 141), (4, 147), (5, 140), (5, 147)])
def test_the_blend_reaches_as_far_as_it_says(levels: int, edge: int) -> None:
    front, back = picture(40, 301).double(), picture(40, 301, 1).double()
    alpha = torch.zeros(2, 1, 40, 301, dtype=torch.float64)
    alpha[..., edge:] = 1
    result = laplacian_blend(front, back, alpha, levels)
    reach = 4 * (2 ** (levels - 1) - 1)
    left, right = edge - reach, edge + reach
    assert torch.equal(result[..., :left], back[..., :left])
    assert torch.allclose(result[..., right:], front[..., right:], atol=1e-14)
    near = slice(edge - reach // 2, edge)
    assert (result[..., near] - back[..., near]).abs().max() > 1e-4


def test_by_default_nothing_beyond_32_pixels_counts() -> None:
    # The blend is linear in the difference of the pictures, so the sum of its absolute gradient
    # bounds what any two pictures in [0, 1] can do to one pixel.
    side = 160
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for phase in range(8):  # the coarsest level has a pixel every 8
        y, x = 76 + phase, 76 + (3 * phase) % 8
        far = ((rows - y) ** 2 + (columns - x) ** 2 > 32**2).double()[None, None]
        front = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
        pixel = laplacian_blend(front, torch.zeros_like(front), far)[0, 0, y, x]
        (slope,) = torch.autograd.grad(pixel, front)
        assert slope.abs().sum() < 1e-3 / 255
