"""Fusers without parameters: each does what its name says, and leaves alone what it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.compose import over
from deep_image_compositing.registry import create

FUSERS: list[tuple[str, dict[str, Any]]] = [
    ("copy_paste", {}),
    ("feather", {}),
    ("feather", {"sigma": 50.0}),
    ("alpha", {}),
    ("alpha", {"foreground_color": "blur_fusion"}),
    ("alpha", {"foreground_color": "multilevel"}),
    ("laplacian", {}),
    ("laplacian", {"levels": 2}),
]


def photographs(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """8-bit noise as foreground and background, every pixel different."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, batch, 3, height, width)
    front, back = torch.randint(0, 256, shape, generator=generator).float() / 255
    return front, back


def disc(side: int, radius: float, softness: float) -> Tensor:
    """A disc of alpha, (1, 1, side, side); softness 0 is binary."""
    place = torch.arange(side) - side / 2 + 0.5
    distance = radius - (place.view(-1, 1) ** 2 + place**2).sqrt()
    if softness == 0:
        return (distance > 0).float()[None, None]
    return (distance / softness + 0.5).clamp(0, 1)[None, None]


def to_bytes(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("name", "options"), FUSERS)
def test_beyond_32_pixels_both_pictures_are_untouched(name: str, options: dict[str, Any]) -> None:
    side, radius, softness = 200, 56.0, 6.0
    front, back = photographs(side, side)
    alpha = disc(side, radius, softness)
    place = torch.arange(side) - side / 2 + 0.5
    distance = (place.view(-1, 1) ** 2 + place**2).sqrt()
    inside = distance < radius - softness / 2 - 32
    outside = distance > radius + softness / 2 + 32
    composite = to_bytes(create("fuser", name, **options)(front, back, alpha))
    assert inside.any()
    assert outside.any()
    assert torch.equal(composite[..., inside], to_bytes(front)[..., inside])
    assert torch.equal(composite[..., outside], to_bytes(back)[..., outside])


def test_copy_paste_is_hard() -> None:
    front, back = photographs(1, 5)
    alpha = torch.tensor([0.0, 0.3, 0.5, 0.51, 1.0]).view(1, 1, 1, 5)
    composite = create("fuser", "copy_paste")(front, back, alpha)
    assert torch.equal(composite[..., :3], back[..., :3])
    assert torch.equal(composite[..., 3:], front[..., 3:])
    lower = create("fuser", "copy_paste", threshold=0.2)(front, back, alpha)
    assert torch.equal(lower[..., 1:], front[..., 1:])


@pytest.mark.parametrize("estimate", ["blur_fusion", "multilevel"])
def test_estimated_colour_takes_the_old_background_out_of_the_rim(estimate: str) -> None:
    side = 160
    alpha = disc(side, 50, 14.0)
    subject = torch.tensor([0.9, 0.5, 0.2]).view(1, 3, 1, 1).expand(1, 3, side, side)
    old = torch.tensor([0.1, 0.8, 0.1]).view(1, 3, 1, 1).expand(1, 3, side, side)
    new = torch.tensor([0.2, 0.2, 0.9]).view(1, 3, 1, 1).expand(1, 3, side, side)
    truth, photograph = over(subject, alpha, new), over(subject, alpha, old)
    plain = create("fuser", "alpha")(photograph, new, alpha)
    clean = create("fuser", "alpha", foreground_color=estimate)(photograph, new, alpha)
    error = (plain - truth).abs().max()
    assert error > 0.15
    assert (clean - truth).abs().max() < error / 5


def test_a_pyramid_has_no_more_levels_than_the_picture() -> None:
    front, back = photographs(17, 23)
    alpha = torch.rand(1, 1, 17, 23, generator=torch.Generator().manual_seed(1))
    few, many = (create("fuser", "laplacian", levels=levels) for levels in (10, 2**31))
    assert torch.equal(few(front, back, alpha), many(front, back, alpha))
