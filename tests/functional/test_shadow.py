"""The shade that a drawn subject throws, and what it does to a background."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.ground import Stand, find_stands
from deep_image_compositing.functional.linear import to_linear
from deep_image_compositing.functional.shadow import (
    Fall,
    Plane,
    cast_shade,
    contact_shade,
    darken,
    gaussians,
    join_shades,
    opacity_over,
)

PLANE = Plane(top=-20, left=-120, height=224, width=320, horizon=10.0, focal=300.0)


def post() -> Stand:
    """A post 20 wide and 100 high, with a crossbar at half its height."""
    alpha = torch.zeros(120, 80)
    alpha[10:110, 30:50] = 1
    alpha[55:65, 10:70] = 1
    return find_stands(alpha)[0]


def at(shade: Tensor, row: float, column: float) -> float:
    """The shade at a place of the subject's picture."""
    return float(shade[int(row) - PLANE.top, int(column) - PLANE.left])


def cast(direction: float, length: float = 1.0, softness: float = 0.1) -> Tensor:
    return cast_shade(post(), PLANE, Fall(direction, length, softness), 0.8)


def test_a_contact_shadow_is_darkest_at_the_contact_and_fades_around_it() -> None:
    shade = contact_shade(post(), PLANE, 0.8, 0.5)
    assert float(shade.min()) >= 0
    assert float(shade.max()) <= 1
    below = [at(shade, 110 + far, 40) for far in (0, 3, 8, 20)]
    beside = [at(shade, 109, 50 + far) for far in (0, 5, 15, 40)]
    assert below == sorted(below, reverse=True)
    assert beside == sorted(beside, reverse=True)
    assert below[0] > 0.6
    assert below[2] < beside[1]  # flattened: as far below as beside it is fainter
    assert at(shade, 60, 75) < 0.02  # the air beside the crossbar


def test_its_strength_scales_it_and_its_softness_widens_it() -> None:
    faint, strong = (contact_shade(post(), PLANE, strength, 0.5) for strength in (0.3, 0.9))
    assert bool((faint <= strong + 1e-6).all())
    assert float(contact_shade(post(), PLANE, 0.0, 0.5).max()) == 0
    hard, soft = (contact_shade(post(), PLANE, 0.8, softness) for softness in (0.2, 0.9))
    assert at(hard, 109, 46) > at(soft, 109, 46)
    assert at(hard, 109, 80) < at(soft, 109, 80)


def test_a_hovering_underside_is_darker_the_closer_it_is() -> None:
    shades = []
    for height in (5, 30):
        alpha = torch.zeros(120, 140)
        alpha[20 : 110 - height, 20:120] = 1
        alpha[:110, 20:30] = alpha[:110, 110:120] = 1
        alpha[:20] = 0
        shades.append(contact_shade(find_stands(alpha)[0], PLANE, 0.8, 0.5))
    assert at(shades[0], 108, 70) > at(shades[1], 108, 70) + 0.1


def test_a_cast_shadow_falls_where_it_is_told() -> None:
    right, left, behind, front = (cast(angle) for angle in (35, 145, 90, 270))
    assert at(right, 100, 90) > 0.2
    assert at(right, 100, -10) < 0.01
    torch.testing.assert_close(at(left, 100, -10), at(right, 100, 89), atol=0.03, rtol=0)
    assert at(behind, 85, 40) > 0.3
    assert at(behind, 130, 40) < 0.01
    assert at(front, 130, 40) > 0.3
    assert at(front, 85, 40) < 0.05


def test_it_starts_at_the_contact_and_grows_with_its_length() -> None:
    short, long = cast(35, 0.5), cast(35, 2.0)
    assert at(short, 108, 48) > 0.4
    assert at(long, 108, 48) > 0.4
    reach = [(shade > 0.1).any(0).nonzero().max().item() for shade in (short, long)]
    assert reach[1] > reach[0] + 60


def test_it_softens_and_fades_with_distance() -> None:
    shade = cast(90, 1.5, 0.3)
    near, far = (shade[row - PLANE.top] for row in (107, 82))
    assert float(near.max()) > float(far.max()) + 0.05
    steepest = [float((row[1:] - row[:-1]).abs().max() / row.max()) for row in (near, far)]
    assert steepest[0] > 1.5 * steepest[1]
    assert float(cast(35, softness=0.0).max()) > float(cast(35, softness=1.0).max())


@pytest.mark.parametrize("direction", [0, 35, 90, 145, 180])
def test_nothing_is_darkened_above_the_horizon(direction: float) -> None:
    shade = join_shades([cast(direction, 4.0), contact_shade(post(), PLANE, 1.0, 1.0)])
    assert float(shade[: int(PLANE.horizon) - PLANE.top - 4].max()) == 0


def test_shades_join_as_light_does_and_end_at_nothing() -> None:
    a, b = torch.full((2, 2), 0.5), torch.full((2, 2), 0.2)
    assert float(join_shades([a, b])[0, 0]) == pytest.approx(0.6, abs=0.01)
    assert float(join_shades([a * 0.001, b * 0.001]).max()) == 0
    torch.testing.assert_close(join_shades([a, b]), join_shades([b, a]))


def test_a_gaussian_keeps_what_there_is_and_has_its_deviation() -> None:
    x = torch.zeros(64, 96)
    x[32, 48] = 1
    narrow, wide = gaussians(x, [(0.0, 0.0), (3.0, 8.0)])
    torch.testing.assert_close(narrow, x, atol=1e-6, rtol=0)
    assert float(wide.sum()) == pytest.approx(1, abs=1e-3)
    columns = torch.arange(96) - 48.0
    assert float((wide.sum(0) * columns**2).sum()) == pytest.approx(64, rel=0.01)
    rows = torch.arange(64) - 32.0
    assert float((wide.sum(1) * rows**2).sum()) == pytest.approx(9, rel=0.01)


def test_darkening_takes_linear_light_and_leaves_what_is_not_shaded() -> None:
    generator = torch.Generator().manual_seed(0)
    background = torch.rand(3, 9, 11, generator=generator)
    shade = torch.rand(1, 9, 11, generator=generator)
    shade[:, 4:] = 0
    dark = darken(background, shade)
    torch.testing.assert_close(to_linear(dark), to_linear(background) * (1 - shade))
    assert torch.equal(dark[:, 4:], background[:, 4:])
    assert bool((dark <= background).all())
    assert float(darken(background, torch.ones_like(shade)).max()) == 0


def test_one_opacity_of_black_comes_close_to_it() -> None:
    generator = torch.Generator().manual_seed(1)
    shade = torch.rand(1, 20, 20, generator=generator)
    gray = torch.rand(1, 20, 20, generator=generator).expand(3, -1, -1)
    laid = gray * (1 - opacity_over(gray, shade))
    torch.testing.assert_close(laid, darken(gray, shade), atol=1e-3, rtol=0)
    color = torch.rand(3, 20, 20, generator=generator)
    laid = color * (1 - opacity_over(color, shade))
    assert float((laid - darken(color, shade)).abs().max()) < 0.04
    black = opacity_over(torch.zeros(3, 20, 20), shade)
    torch.testing.assert_close(black, opacity_over(torch.ones(3, 20, 20), shade))
    assert float(opacity_over(color, torch.zeros_like(shade)).abs().max()) < 1e-6
