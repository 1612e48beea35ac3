"""Lifting alpha from a working size to a photograph's own."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_image_compositing.functional.compose import unknown_band
from deep_image_compositing.functional.lift import (
    follow_alpha,
    guided_factors,
    make_guide,
    snap_alpha,
)
from deep_image_compositing.functional.resize import resize
from tests.conftest import disc


def lifted(photograph: Tensor, image: Tensor, alpha: Tensor) -> Tensor:
    size = (photograph.shape[-2], photograph.shape[-1])
    return follow_alpha(resize(make_guide(image, alpha), size), photograph)


def test_snapping_reaches_zero_and_one_away_from_the_rim_only() -> None:
    alpha = disc(200, 200, 0.1) * 0.99 + 0.005
    out = snap_alpha(alpha, 10)
    band = unknown_band(alpha, 10)
    assert torch.equal(out[band], alpha[band])
    assert set(out[~band].unique().tolist()) == {0.0, 1.0}


def test_factors_find_a_linear_relation() -> None:
    image = torch.rand(1, 3, 20, 20)
    alpha = (0.5 * image[:, :1] - 0.25 * image[:, 1:2] + 0.3).clamp(0, 1)
    factors = guided_factors(image, alpha, radius=2, eps=1e-9)
    expected = torch.tensor([0.5, -0.25, 0.0]).view(1, 3, 1, 1).expand_as(factors)
    assert torch.allclose(factors, expected, atol=1e-3)


def test_lifting_follows_the_edges_of_the_photograph() -> None:
    true = disc(240, 320, 0.02)
    color = torch.tensor([0.9, 0.7, 0.2]).view(1, 3, 1, 1)
    photograph = true * color + (1 - true) * torch.tensor([0.1, 0.2, 0.6]).view(1, 3, 1, 1)
    small_alpha = resize(true, (60, 80))
    found = lifted(photograph, resize(photograph, (60, 80)), small_alpha)
    band = unknown_band(true, 4)
    error = (found - true)[band].abs().mean()
    plain = (resize(small_alpha, (240, 320)) - true)[band].abs().mean()
    assert error < 0.4 * plain


def test_lifting_is_exact_away_from_the_rim() -> None:
    photograph = torch.rand(1, 3, 300, 180)
    small = disc(100, 60, 0.05)
    found = lifted(photograph, resize(photograph, (100, 60)), small)
    far = ~unknown_band(resize(small, (300, 180)), 21)
    assert set(found[far].unique().tolist()) == {0.0, 1.0}
