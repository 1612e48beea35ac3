"""Degraded masks: in range, reproducible, wrong near the outline and only there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import unknown_band
from deep_image_compositing.functional.degradation import degrade_mask


def alphas(count: int, side: int = 96) -> Tensor:
    """Soft discs, (count, 1, side, side)."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = ((rows - side / 2) ** 2 + (columns - side / 2) ** 2).sqrt()
    return ((side / 3 - distance) / 4 + 0.5).clamp(0, 1).expand(count, 1, -1, -1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    strength=st.floats(0.01, 4),
)
def test_any_size_stays_in_range_and_is_reproducible(
    height: int, width: int, seed: int, strength: float
) -> None:
    alpha = torch.rand(4, 1, height, width, generator=seeded(seed))
    mask = degrade_mask(alpha, seeded(seed), strength)
    assert mask.shape == alpha.shape
    assert mask.dtype == alpha.dtype
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert torch.equal(mask, degrade_mask(alpha, seeded(seed), strength))
    half = degrade_mask(alpha.half().requires_grad_(), seeded(seed), strength)
    assert (half.dtype, half.requires_grad) == (torch.float16, False)


def test_the_mix_holds_exact_binary_and_soft_masks() -> None:
    alpha = alphas(200)
    mask = degrade_mask(alpha, seeded(0))
    assert not torch.equal(mask, degrade_mask(alpha, seeded(1)))
    exact = (mask == alpha).flatten(1).all(1)
    binary = ((mask == 0) | (mask == 1)).flatten(1).all(1)
    assert 0.04 < exact.float().mean() < 0.18
    assert 0.2 < binary.float().mean() < 0.6
    assert 0.2 < (~binary & ~exact).float().mean() < 0.7
    assert torch.equal(degrade_mask(alpha, seeded(0), exact=1.0), alpha)
    everything = degrade_mask(alpha, seeded(0), exact=0.0)
    assert not (everything == alpha).flatten(1).all(1).any()


def test_masks_grow_as_often_as_they_shrink() -> None:
    alpha = alphas(300)
    change = (degrade_mask(alpha, seeded(3)) - alpha).mean((1, 2, 3))
    assert change.mean().abs() < 0.01
    assert (change > 0.005).float().mean() > 0.15
    assert (change < -0.005).float().mean() > 0.15


def test_only_the_surroundings_of_the_outline_change() -> None:
    alpha = alphas(200, 128)
    mask = degrade_mask(alpha, seeded(4))
    # wander 2 x 2 %, growth 1.2 %, blobs 3 %, softness 2 x 0.8 % and a few pixels of rounding
    far = ~unknown_band(alpha, round(0.1 * 128) + 4)
    assert far.any()
    assert (mask - alpha)[far].abs().max() < 1e-5


def test_strength_scales_the_damage() -> None:
    alpha = alphas(100)
    assert degrade_mask(alpha, seeded(0), 0.0) is alpha
    damage = [
        float((degrade_mask(alpha, seeded(5), strength) - alpha).abs().mean())
        for strength in (0.1, 0.5, 1.0, 2.0)
    ]
    assert damage == sorted(damage)
    assert damage[0] < damage[-1] / 3


def test_nonsense_is_refused() -> None:
    for name in ("strength", "jitter", "coarseness", "growth", "exact"):
        for value in (-0.1, float("nan"), float("inf")):
            with pytest.raises(UsageError, match=name):
                degrade_mask(alphas(1, 8), **{name: value})
    with pytest.raises(UsageError, match=r"\[0, 1\], got 1.5"):
        degrade_mask(alphas(1, 8), exact=1.5)
