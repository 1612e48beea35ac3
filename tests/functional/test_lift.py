"""Lifting alpha from a working size to a photograph's own."""

from __future__ import annotations

import pytest
import torch

from deep_image_compositing.functional.compose import unknown_band
from deep_image_compositing.functional.lift import (
    guided_factors,
    lift_alpha,
    snap_alpha,
    upsample_rows,
)
from deep_image_compositing.functional.resize import resize
from tests.conftest import disc


@pytest.mark.parametrize("size", [(64, 48), (13, 48), (64, 11), (200, 7), (13, 11)])
def test_rows_of_an_enlargement_are_its_slices(size: tuple[int, int]) -> None:
    small = torch.rand(1, 2, 13, 11)
    whole = resize(small, size) if size[0] >= 13 and size[1] >= 11 else None
    bands = [upsample_rows(small, size, top, min(top + 5, size[0])) for top in range(0, size[0], 5)]
    if whole is None:  # narrower: compare with the one-band answer instead
        whole = upsample_rows(small, size, 0, size[0])
    assert torch.allclose(torch.cat(bands, dim=2), whole, atol=1e-5)


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


def test_factors_are_zero_where_alpha_is_constant() -> None:
    assert not guided_factors(torch.rand(1, 3, 9, 9), torch.ones(1, 1, 9, 9)).any()


def test_lifting_follows_the_edges_of_the_photograph() -> None:
    true = disc(240, 320, 0.02)
    color = torch.tensor([0.9, 0.7, 0.2]).view(1, 3, 1, 1)
    photograph = true * color + (1 - true) * torch.tensor([0.1, 0.2, 0.6]).view(1, 3, 1, 1)
    pixels = (photograph[0] * 255).round().byte()
    small_alpha = resize(true, (60, 80))
    lifted = lift_alpha(pixels, resize(photograph, (60, 80)), small_alpha)
    band = unknown_band(true, 4)
    error = (lifted - true)[band].abs().mean()
    plain = (resize(small_alpha, (240, 320)) - true)[band].abs().mean()
    assert error < 0.4 * plain


def test_lifting_is_exact_away_from_the_rim_and_does_not_depend_on_bands() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, 300, 180), dtype=torch.uint8)
    small = disc(100, 60, 0.05)
    image = resize(pixels[None] / 255, (100, 60))
    lifted = lift_alpha(pixels, image, small)
    far = ~unknown_band(resize(small, (300, 180)), 21)
    assert set(lifted[far].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(lifted, lift_alpha(pixels, image, small, band=7))


def test_lifting_to_the_same_size_changes_nothing() -> None:
    alpha = torch.rand(1, 1, 5, 4)
    pixels = torch.zeros(3, 5, 4, dtype=torch.uint8)
    assert torch.equal(lift_alpha(pixels, torch.zeros(1, 3, 5, 4), alpha), alpha)


def test_lifting_from_one_pixel() -> None:
    pixels = torch.zeros(3, 3, 2, dtype=torch.uint8)
    lifted = lift_alpha(pixels, torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1, 1))
    assert torch.equal(lifted, torch.ones(1, 1, 3, 2))
