"""Harmonizers: what each does to the subject's colours, and how the learned one learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kornia.color import rgb_to_linear_rgb
from torch import Generator, Tensor

from deep_image_compositing import registry
from deep_image_compositing.data.recolor import recolor
from deep_image_compositing.functional.color_transfer import ColorStatistics, weighted_mean
from deep_image_compositing.models.base import WHOLE
from deep_image_compositing.models.harmonization.color_map import apply_color_map
from deep_image_compositing.stages.base import Harmonizer

SMALL: dict[str, Any] = {"backbone": "test_efficientnet", "width": 16, "size": 32}
MOVING = ("reinhard", "white_balance", "color_map")


def noise(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator)


def scene(height: int = 24, width: int = 36) -> tuple[Tensor, Tensor]:
    """A bluish subject with a soft rim in the middle of a warm scene, and its mask."""
    tints = torch.tensor([[0.6, 0.6, 0.68], [0.75, 0.6, 0.55]]).view(2, 3, 1, 1)
    subject, around = (tints[:, None] * noise(1, 3, height, width, low=0.4, high=0.9)).unbind(0)
    mask = torch.zeros(1, 1, height, width)
    mask[..., 6:-6, 9:-9] = 1
    mask = torch.nn.functional.avg_pool2d(mask, 3, 1, 1)
    return torch.lerp(around, subject, mask), mask


def make(name: str, **options: Any) -> Harmonizer:
    """A harmonizer that moves colours: the learned one by random weights."""
    torch.manual_seed(0)
    stage: Harmonizer = registry.create(
        "harmonizer", name, **(SMALL if name == "color_map" else {}), **options
    ).eval()
    if name == "color_map":
        network: Any = stage.network
        for head in (network.polynomial, network.local):
            torch.nn.init.normal_(head.weight, std=0.15)
    return stage


@pytest.mark.parametrize("name", MOVING)
def test_the_strength_is_how_far_colours_go(name: str) -> None:
    composite, mask = scene()
    with torch.inference_mode():
        none, half, all_ = (make(name, strength=s)(composite, mask) for s in (0.0, 0.5, 1.0))
    assert torch.equal(none, composite)
    assert (all_ - composite).abs().max() > 0.02
    assert torch.allclose(half - composite, (all_ - composite) / 2, atol=1e-6)


@pytest.mark.parametrize(("levels", "share"), [(1.5, 0.0), (5.0, 0.5), (20.0, 1.0)])
def test_a_change_that_is_hardly_one_is_none(levels: float, share: float) -> None:
    composite, mask = scene()
    stage: Any = registry.create("harmonizer", "color_map", **SMALL).eval()
    with torch.inference_mode():
        stage.network.polynomial.bias[::10] = levels / 255 / torch.tensor(2.0).sigmoid()
        answer = stage(composite, torch.ones_like(mask).index_fill_(2, torch.tensor([0]), 0))
    moved = (answer - composite)[:, :, 1:]
    assert float(moved.median()) == pytest.approx(share * levels / 255, abs=1e-4)


def test_reinhard_all_the_way_gives_the_scene_s_statistics() -> None:
    composite, mask = scene()
    mask = (mask > 0.5).float()
    found = ColorStatistics.of(make("reinhard", strength=1.0)(composite, mask), mask)
    wanted = ColorStatistics.of(composite, 1 - mask)
    assert torch.allclose(found.mean, wanted.mean, atol=1e-2)
    assert torch.allclose(found.deviation, wanted.deviation, atol=1e-2)


def test_white_balance_takes_the_tint_and_leaves_the_brightness() -> None:
    composite, mask = scene()
    mask = (mask > 0.5).float()
    answer = make("white_balance", strength=1.0)(composite, mask)

    def mean(picture: Tensor, weight: Tensor) -> Tensor:
        return weighted_mean(rgb_to_linear_rgb(picture), weight).flatten()

    luma = torch.tensor([0.2126, 0.7152, 0.0722])
    before, after, around = mean(composite, mask), mean(answer, mask), mean(composite, 1 - mask)
    assert float(luma @ after) == pytest.approx(float(luma @ before), rel=1e-2)
    assert torch.allclose(after / (luma @ after), around / (luma @ around), atol=0.02)
    assert not torch.allclose(before / (luma @ before), around / (luma @ around), atol=0.1)


@pytest.mark.parametrize("name", MOVING)
def test_what_a_small_picture_says_holds_for_a_large_one(name: str) -> None:
    composite, mask = scene(96, 144)
    small = [torch.nn.functional.avg_pool2d(x, 2) for x in (composite, mask)]
    stage = make(name, strength=1.0)
    with torch.inference_mode():
        recolor = stage.recoloring(*small)
        assert recolor is not None
        large, own = recolor(composite, WHOLE), recolor(small[0], WHOLE)
        assert large.shape == composite.shape
        # Where it moved a small pixel, it moves those that made it about as far.
        moved = torch.nn.functional.avg_pool2d(large - composite, 2)
    assert (moved - (own - small[0])).abs().mean() < 0.02


# The learned one


def test_a_colour_map_of_zeros_is_the_identity() -> None:
    colors = noise(2, 3, 9, 13)
    answer = apply_color_map(colors, torch.zeros(2, 3, 10), torch.zeros(2, 6, 8, 8), WHOLE)
    assert torch.equal(answer, colors)


def test_a_colour_map_by_hand() -> None:
    colors = noise(1, 3, 8, 16, low=0.2, high=0.5)
    polynomial, grid = torch.zeros(1, 3, 10), torch.zeros(1, 6, 8, 8)
    polynomial[0, 0, 0] = 0.1  # red is raised
    polynomial[0, 1, 3] = 0.5  # green takes half of blue
    polynomial[0, 2, 6] = -1.0  # blue loses its square
    polynomial[0, 0, 7], polynomial[0, 1, 8], polynomial[0, 2, 9] = 0.1, 0.2, 0.3  # products
    polynomial[0, 0, 5] = -0.4  # red loses by the square of green
    red, green, blue = colors.unbind(1)
    expected = torch.stack(
        [
            red + 0.1 + 0.1 * red * green - 0.4 * green**2,
            green + 0.5 * blue + 0.2 * green * blue,
            blue - blue**2 + 0.3 * blue * red,
        ],
        1,
    )
    assert torch.allclose(apply_color_map(colors, polynomial, grid, WHOLE), expected, atol=1e-6)
    grid[:, 0, :, 4:], grid[:, 5, :, :4] = 0.5, 0.2  # red by half on the right, blue on the left
    answer = apply_color_map(colors, polynomial, grid, WHOLE)
    assert torch.allclose(answer[:, 0, :, 9:], 1.5 * expected[:, 0, :, 9:], atol=1e-6)
    assert torch.allclose(answer[:, 0, :, :7], expected[:, 0, :, :7], atol=1e-6)
    assert torch.allclose(answer[:, 2, :, :7], expected[:, 2, :, :7] + 0.2, atol=1e-6)
    # A part of the picture is moved as it is in the whole.
    part = apply_color_map(colors[..., 2:6, 4:12], polynomial, grid, (0.25, 0.25, 0.75, 0.75))
    assert torch.allclose(part, answer[..., 2:6, 4:12], atol=1e-6)
    polynomial[0, 0, 0], polynomial[0, 1, 0] = 5, -5
    answer = apply_color_map(colors, polynomial, grid, WHOLE)
    assert (answer[:, 0] == 1).all()
    assert (answer[:, 1] == 0).all()


@pytest.mark.parametrize("freeze", [True, False])
def test_norms_stay_as_they_were_if_told(freeze: bool) -> None:
    stage = registry.create("harmonizer", "color_map", freeze_norms=freeze, **SMALL)
    before = {k: v.clone() for k, v in stage.state_dict().items() if "running_mean" in k}
    stage.train()(noise(2, 3, 32, 32), noise(2, 1, 32, 32))
    after = stage.state_dict()
    encoder = [key for key in before if ".encoder." in key]
    assert encoder
    assert all(torch.equal(before[key], after[key]) == freeze for key in encoder)


def test_it_learns_to_undo_what_was_done_to_the_colours() -> None:
    torch.manual_seed(0)
    stage = registry.create("harmonizer", "color_map", learning_rate=3e-3, **SMALL).train()
    image = torch.nn.functional.interpolate(noise(8, 3, 4, 4), (32, 32), mode="bilinear")
    mask = torch.zeros(8, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    composite = recolor(image, mask, Generator().manual_seed(0), untouched=0.0)
    batch = {"composite": composite, "mask": mask, "image": image}
    optimizer = stage.configure_optimizers()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        step = stage.loss(batch)
        assert set(step.terms) == {"l1", "mse", "log"}
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    untouched = float(registry.create("harmonizer", "none").loss(batch).loss.detach())
    assert losses[0] == pytest.approx(untouched, rel=1e-4)  # it begins by leaving alone
    assert losses[-1] < 0.6 * untouched
