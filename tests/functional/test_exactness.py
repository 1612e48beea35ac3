"""Telling exact alphas from rough ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.functional.compose import over
from deep_image_compositing.functional.exactness import EXACT, exactness, unexplained


def strands(size: int = 96) -> tuple[Tensor, Tensor]:
    """A photograph of soft strands before a smooth background, and their alpha."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(1, 1, size, size, generator=generator)
    alpha = F.avg_pool2d(noise, (9, 3), 1, (4, 1))
    alpha = ((alpha - 0.42) * 6).clamp(0, 1)
    ramp = torch.linspace(0.1, 0.3, size).expand(1, 1, size, size)
    subject = torch.cat([0.9 - ramp, 0.7 - ramp, 0.5 + ramp], 1)
    behind = torch.cat([ramp, ramp.mT, 0.4 - ramp], 1)
    return over(subject, alpha, behind), alpha


def rough(alpha: Tensor) -> Tensor:
    return F.avg_pool2d(alpha, 7, 1, 3, count_include_pad=False)


def test_an_exact_alpha_is_told_from_a_rough_one() -> None:
    photograph, alpha = strands()
    assert unexplained(photograph, alpha).item() < EXACT[0]
    assert unexplained(photograph, rough(alpha)).item() > EXACT[1]
    both = exactness(photograph.repeat(2, 1, 1, 1), torch.cat([alpha, rough(alpha)]))
    assert both.flatten().tolist() == [1, 0]


def test_smooth_masks_of_smooth_photographs_are_not_exact() -> None:
    # Three colours that slope in different directions explain any slope.
    size = 96
    y = torch.linspace(0, 1, size).view(1, 1, -1, 1).expand(1, 1, size, size)
    photograph = torch.cat([y, y.mT, (y * y.mT)], 1)
    photograph = (photograph + 0.001 * torch.randn(1, 3, size, size)).clamp(0, 1)
    x = torch.linspace(-8, 8, size).expand(1, 1, size, size)
    assert unexplained(photograph, x.sigmoid()).item() > EXACT[1]


def test_of_many_windows_some_are_looked_at() -> None:
    photograph, alpha = strands()
    for mask in (alpha, rough(alpha)):
        every, some = (unexplained(photograph, mask, most=most).item() for most in (10**6, 500))
        assert every != some
        assert every == pytest.approx(some, rel=0.4)


def test_masks_without_a_soft_rim_show_nothing() -> None:
    photograph, alpha = strands()
    for mask in (alpha.round(), torch.ones_like(alpha), torch.full_like(alpha, 0.4)):
        assert unexplained(photograph, mask).item() == 1
    assert exactness(photograph, alpha.round()).item() == 0


def test_half_precision_does_not_blur_the_measure() -> None:
    photograph, alpha = strands()
    answer = exactness(photograph.half(), alpha.half())
    assert (answer.dtype, answer.item()) == (torch.float16, 1)
    wanted = unexplained(photograph, alpha)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(unexplained(photograph, alpha), wanted)
