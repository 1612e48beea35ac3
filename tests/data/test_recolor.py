"""Subjects with random colours: only theirs, repeatable, from none to strong."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from deep_image_compositing.data.recolor import UNTOUCHED, move_colors, recolor
from tests.contract.test_stages import picture, soft_alpha


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """Eight smooth pictures, and the alpha of their subjects with all three of 0, soft and 1."""
    small = picture(8, 3, 3, 4)
    image = torch.nn.functional.interpolate(small, (24, 32), mode="bilinear")
    return image, soft_alpha(8, 24, 32)


def test_nothing_outside_the_mask_changes(pictures: tuple[Tensor, Tensor]) -> None:
    image, mask = pictures
    outside = (mask == 0).expand_as(image)
    for seed in range(20):
        composite = recolor(image, mask, seeded(seed))
        assert torch.equal(composite[outside], image[outside])
        assert not torch.equal(composite, image)


def test_a_composite_is_the_moved_photograph_under_the_mask(
    pictures: tuple[Tensor, Tensor],
) -> None:
    image, mask = pictures
    moved = move_colors(image, mask, seeded(3))
    assert torch.equal(recolor(image, mask, seeded(3)), torch.lerp(image, moved, mask))
    changed = (moved != image).flatten(1).any(1)
    assert torch.equal(
        (moved != image)[changed].any(1).float().mean((1, 2)) > 0.9,
        torch.ones(int(changed.sum())).bool(),
    )  # all of it, not the subject alone


def test_a_seed_decides_what_is_made(pictures: tuple[Tensor, Tensor]) -> None:
    first, again, other = (recolor(*pictures, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_strength_nothing_changes(pictures: tuple[Tensor, Tensor]) -> None:
    image, mask = pictures
    for seed in range(5):
        assert torch.equal(recolor(image, mask, seeded(seed), strength=0.0), image)
        assert torch.equal(recolor(image, mask, seeded(seed), untouched=1.0), image)


def change(pictures: tuple[Tensor, Tensor], runs: int, **options: float) -> Tensor:
    """Mean change of each subject in 8-bit levels, over many draws."""
    image, mask = pictures
    inside = (mask > 0).float()
    total = 3 * inside.sum((1, 2, 3))
    made = [recolor(image, mask, seeded(seed), **options) for seed in range(runs)]
    return torch.cat([255 * ((x - image).abs() * inside).sum((1, 2, 3)) / total for x in made])


def test_changes_go_from_none_and_faint_to_strong(pictures: tuple[Tensor, Tensor]) -> None:
    found = change(pictures, 60)
    assert float((found == 0).float().mean()) == pytest.approx(UNTOUCHED, abs=0.06)
    moved = found[found > 0]
    low, middle, high = moved.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert low < 12 < middle < 45 < high
    assert not (change(pictures, 10, untouched=0.0) == 0).all()


def test_strength_scales_the_changes(pictures: tuple[Tensor, Tensor]) -> None:
    weak, usual = (change(pictures, 10, strength=strength).mean() for strength in (0.2, 1.0))
    assert 0.1 < weak / usual < 0.4


@pytest.mark.parametrize("value", [0.0, 1 / 255, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 6)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_flat_and_tiny_pictures_stay_in_range(
    value: float, size: tuple[int, int], share: float
) -> None:
    image = torch.full((3, 3, *size), value)
    for seed in range(20):
        made = recolor(image, torch.full((3, 1, *size), share), seeded(seed))
        assert made.dtype == torch.float32
        assert made.isfinite().all()
        assert made.min() >= 0
        assert made.max() <= 1


def test_one_picture_alone_is_moved_too() -> None:
    image, mask = picture(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    made = [recolor(image, mask, seeded(seed), untouched=0.0) for seed in range(10)]
    assert all(x.isfinite().all() for x in made)
    assert sum(not torch.equal(x, image) for x in made) >= 9
