"""Resizing, fitting and padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_image_compositing.functional.resize import fit_long_side, pad_to_multiple, resize, spread

MODES = ("bilinear", "bicubic", "nearest-exact")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_dtype_and_constants(mode: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.full((2, 1, 7, 5), 0.5, dtype=dtype)
        for size in ((3, 2), (20, 20), (14, 1), (1, 1)):
            out = resize(x, size, mode)
            assert out.shape == (2, 1, *size)
            assert out.dtype == dtype
            assert torch.allclose(out, torch.tensor(0.5, dtype=dtype))


def test_the_same_size_returns_the_tensor_itself() -> None:
    x = torch.rand(1, 3, 4, 6)
    assert resize(x, (4, 6)) is x


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_shrinking_does_not_alias(mode: str) -> None:
    stripes = (torch.arange(128) % 2).float().expand(1, 1, 128, 128)
    inner = resize(stripes, (32, 32), mode)[..., 4:-4, 4:-4]
    assert (inner - 0.5).abs().max() < 0.02


def test_enlarging_is_plain_interpolation() -> None:
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert torch.allclose(resize(x, (1, 4)).flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))


@settings(max_examples=50)
@given(height=st.integers(1, 9000), width=st.integers(1, 9000), side=st.integers(1, 4000))
def test_fitting_keeps_the_aspect_and_never_loses_a_side(
    height: int, width: int, side: int
) -> None:
    h, w = fit_long_side(height, width, side)
    if max(height, width) <= side:
        assert (h, w) == (height, width)
    else:
        assert max(h, w) == side
        scale = side / max(height, width)
        assert abs(h - max(1, height * scale)) <= 0.5
        assert abs(w - max(1, width * scale)) <= 0.5
    assert min(h, w) >= 1
    assert max(fit_long_side(height, width, side, enlarge=True)) == side


@settings(max_examples=50)
@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.integers(1, 32))
def test_padding_repeats_the_border_and_crops_back(height: int, width: int, multiple: int) -> None:
    x = torch.rand(1, 2, height, width)
    padded, (h, w) = pad_to_multiple(x, multiple)
    assert padded.shape[-2] % multiple == 0
    assert padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple
    assert padded.shape[-1] - width < multiple
    assert torch.equal(padded[..., :h, :w], x)
    assert torch.equal(padded[..., -1, -1], x[..., -1, -1])


@pytest.mark.parametrize("cells", [(1, 1), (8, 5), (40, 3), (50, 70)])
def test_a_grid_is_spread_bilinearly_over_any_part(cells: tuple[int, int]) -> None:
    grid = torch.rand(2, 3, *cells)
    whole = spread(grid, (96, 120), (0, 0, 1, 1))
    expected = F.interpolate(grid, (96, 120), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)
    part = spread(grid, (24, 40), (24 / 96, 60 / 120, 48 / 96, 100 / 120))
    torch.testing.assert_close(part, whole[..., 24:48, 60:100], atol=1e-5, rtol=0)
