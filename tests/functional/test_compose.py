"""The compositing equation, rim bands, trimaps and morphology."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import (
    dilate,
    erode,
    feather,
    over,
    pixels_of_share,
    reconstruct,
    resize_trimap,
    trimap_from_levels,
    trimap_from_mask,
    unknown_band,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def triple(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    front, back = (torch.rand(2, 3, 9, 17, generator=generator) for _ in range(2))
    alpha = torch.rand(2, 1, 9, 17, generator=generator)
    return front.to(dtype), alpha.to(dtype), back.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_over_is_exact_at_both_ends_and_between_equal_colours_and_stays_between_others(
    dtype: torch.dtype, seed: int
) -> None:
    front, alpha, back = triple(seed, dtype)
    result = over(front, alpha, back)
    assert result.dtype == dtype
    assert (result >= torch.minimum(front, back)).all()
    assert (result <= torch.maximum(front, back)).all()
    assert torch.equal(over(front, torch.ones_like(alpha), back), front)
    assert torch.equal(over(front, torch.zeros_like(alpha), back), back)
    assert torch.equal(over(front, alpha, front), front)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(-4, 4))
def test_over_is_the_compositing_equation_and_linear(seed: int, scale: float) -> None:
    front, alpha, back = triple(seed, torch.float64)
    other_front, _, other_back = triple(seed + 1, torch.float64)
    result = over(front, alpha, back)
    assert torch.allclose(result, alpha * front + (1 - alpha) * back, atol=1e-14)
    mixed = over(front + scale * other_front, alpha, back + scale * other_back)
    assert torch.allclose(mixed, result + scale * over(other_front, alpha, other_back), atol=1e-13)


def test_over_takes_mixed_precision_and_has_gradients() -> None:
    front, alpha, back = triple(0)
    assert over(front.half(), alpha, back).dtype == torch.float32
    tensors = [t[..., :2, :3].double().requires_grad_() for t in (front, alpha, back)]
    assert torch.autograd.gradcheck(over, tensors)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    radius=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_morphology_is_that_of_scipy(height: int, width: int, radius: int, seed: int) -> None:
    x = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(seed))
    size = (1, 1, 2 * radius + 1, 2 * radius + 1)
    highest = ndimage.maximum_filter(x.numpy(), size, mode="nearest")
    lowest = ndimage.minimum_filter(x.numpy(), size, mode="nearest")
    assert np.array_equal(dilate(x, radius).numpy(), highest)
    assert np.array_equal(erode(x, radius).numpy(), lowest)
    assert torch.equal(dilate(x > 0.5, radius), dilate(x, radius) > 0.5)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    radius=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_the_band_follows_its_definition(height: int, width: int, radius: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor([0.0, 0.0, 0.0, 0.005, 1.0, 1.0, 0.995, 0.5])
    alpha = levels[torch.randint(0, 8, (height, width), generator=generator)]
    rim = []
    for y in range(height):
        for x in range(width):
            around = alpha[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            soft = 0.01 < alpha[y, x] < 0.99
            hard = (alpha[y, x] >= 0.99 and (around <= 0.01).any()) or (
                alpha[y, x] <= 0.01 and (around >= 0.99).any()
            )
            if soft or hard:
                rim.append((y, x))
    expected = torch.tensor(
        [
            [any(max(abs(y - v), abs(x - u)) <= radius for v, u in rim) for x in range(width)]
            for y in range(height)
        ]
    )
    assert torch.equal(unknown_band(alpha[None, None], radius)[0, 0], expected)


def test_trimap() -> None:
    mask = torch.zeros(1, 1, 30, 30)
    mask[..., 10:, 10:20] = 0.8  # leaves the picture at the bottom
    trimap = trimap_from_mask(mask, 3)
    assert trimap.unique().tolist() == [0, 0.5, 1]
    assert trimap[0, 0, 29, 15] == 1
    assert (trimap[0, 0, 7:13, 15] == 0.5).all()
    assert trimap[0, 0, 6, 15] == 0
    assert trimap[0, 0, 13, 15] == 1
    assert torch.equal(trimap_from_mask(mask, 0), (mask > 0.5).float())
    assert not trimap_from_mask(mask / 2, 3).any()


def test_feather_is_a_gaussian_that_ends() -> None:
    mask = torch.zeros(1, 1, 9, 101, dtype=torch.float64)
    mask[..., 50:] = 1
    soft = feather(mask, 4.0)[0, 0, 4]
    place = torch.arange(101, dtype=torch.float64) - 49.5
    expected = 0.5 * (1 + torch.erf(place / (4.0 * math.sqrt(2))))
    assert (soft - expected).abs().max() < 2e-3
    wide = feather(mask, 100.0)[0, 0, 4]
    assert torch.equal(wide[:28], mask[0, 0, 4, :28])
    assert torch.equal(wide[72:], mask[0, 0, 4, 72:])
    assert 0 < wide[28] < wide[71] < 1
    assert torch.equal(feather(mask, 0.0), mask)
    assert torch.equal(feather(mask, 1e-200), mask)
    assert torch.allclose(feather(mask, 1e308), feather(mask, 1e9))


def test_reconstruction_keeps_what_hangs_together_with_a_seed() -> None:
    region = torch.zeros(1, 1, 40, 60, dtype=torch.bool)
    region[..., 5, 2:50] = region[..., 5:30, 49] = True  # a long bent way
    region[..., 30, 50] = True  # on over a corner
    region[..., 35, :20] = True  # apart
    seeds = torch.zeros_like(region)
    seeds[..., 5, 2] = True
    seeds[..., 20, 20] = True  # outside, counts for nothing
    wanted = region.clone()
    wanted[..., 35, :20] = False
    assert torch.equal(reconstruct(seeds, region), wanted)
    assert not reconstruct(torch.zeros_like(seeds), region).any()


def test_shares_of_the_long_side_are_whole_pixels() -> None:
    assert pixels_of_share(0.02, (512, 300)) == 10
    assert pixels_of_share(0.02, (300, 1024)) == 20
    assert pixels_of_share(0.02, (1, 7)) == 1
    assert pixels_of_share(0, (512, 300)) == 0
    with pytest.raises(UsageError, match=r"lies in \[0, 1\], got -0.1"):
        pixels_of_share(-0.1, (5, 5))


def test_levels_of_eight_bit_files_become_a_trimap() -> None:
    gray = torch.tensor([0.0, 25, 26, 127, 128, 229, 230, 255]).view(1, 1, 1, 8) / 255
    expected = [0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1]
    assert trimap_from_levels(gray).flatten().tolist() == expected
    assert trimap_from_levels(gray.half()).dtype == torch.float16


def test_resizing_leaves_only_three_values_and_mixes_to_unknown() -> None:
    trimap = torch.zeros(1, 1, 12, 20)
    trimap[..., 9:] = 1
    small = resize_trimap(trimap, (6, 10))
    assert set(small.unique().tolist()) == {0, 0.5, 1}
    assert (small[..., :3] == 0).all()
    assert (small[..., 7:] == 1).all()
