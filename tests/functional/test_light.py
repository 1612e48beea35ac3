"""The guess at a picture's light."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_image_compositing.functional.light import LEAST, MOST, SIDEWAYS, guess_light


def slope(stops: float, size: tuple[int, int] = (60, 80)) -> Tensor:
    """A wall (3, H, W) that grows brighter from left to right by so many stops of linear light."""
    linear = 0.1 * 2 ** torch.linspace(0, stops, size[1])
    return (linear.clamp(0, 1) ** (1 / 2.2)).expand(3, *size)


def test_light_comes_from_the_brighter_side() -> None:
    picture = slope(3)
    assert guess_light(picture).direction == 180 - SIDEWAYS  # from the right, so shadows fall left
    assert guess_light(picture.flip(-1)).direction == SIDEWAYS


def test_it_says_when_it_does_not_know() -> None:
    assert guess_light(slope(0.3)).direction is None
    plain = guess_light(torch.full((3, 40, 50), 0.5))
    assert (plain.direction, plain.softness) == (None, None)
    generator = torch.Generator().manual_seed(0)
    assert guess_light(torch.rand(3, 64, 64, generator=generator)).direction is None
    assert guess_light(torch.rand(3, 1, 1, generator=generator)).direction is None


def test_a_sun_in_the_picture_throws_shadows_towards_the_viewer_and_away_from_it() -> None:
    picture = torch.full((3, 96, 128), 0.25)
    picture[:, 48:] = 0.15
    ahead, right = picture.clone(), picture.clone()
    ahead[:, 20:28, 60:68] = 1
    right[:, 20:28, 110:118] = 1
    assert abs(guess_light(ahead).direction - 270) < 3
    assert 200 < guess_light(right).direction < 260
    assert guess_light(right.flip(-1)).direction == 540 - guess_light(right).direction


def test_contrast_on_the_ground_is_hard_light_but_never_a_bare_sun() -> None:
    flat, harsh = torch.full((3, 64, 64), 0.5), torch.full((3, 64, 64), 0.5)
    flat[:, :20] = 0.8
    harsh[:, 40:, ::4] = 0.02
    harsh[:, 40:, 1::4] = 0.02
    soft, hard = guess_light(flat).softness, guess_light(harsh).softness
    assert soft == MOST
    assert LEAST <= hard < soft
