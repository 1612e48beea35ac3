"""What all refiners that are matting methods share, on one whose answer is known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deep_image_compositing.errors import CompositingError
from deep_image_compositing.models.refinement.matting import Picture
from deep_image_compositing.stages.matting import SolvedMattingRefiner


class RedRefiner(SolvedMattingRefiner):
    """Alpha is the red channel; takes 1 GB for each 1000 pixels."""

    method = "red"
    reach: int | None = 2

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[tuple[int, ...]] = []

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        self.seen.append(image.shape)
        assert image.dtype == trimap.dtype == mask.dtype == np.float64
        assert set(np.unique(trimap)) <= {0, 0.5, 1}
        return image[..., 0].copy()

    def bytes_needed(self, pixels: int, unknown: int) -> float:
        return 1e6 * pixels


def scene(height: int = 40, width: int = 60) -> tuple[Tensor, Tensor]:
    """8-bit noise, and a mask that is a rectangle."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, height, width), generator=generator).float() / 255
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return image, mask


def test_known_pixels_are_kept_and_only_the_rim_is_solved() -> None:
    image, mask = scene()
    refiner = RedRefiner(band=0.05)  # 3 pixels
    alpha, trimap = refiner(image, mask), refiner.make_trimap(mask)
    known = trimap != 0.5
    assert torch.equal(alpha[known], trimap[known])
    assert torch.equal(alpha[~known], image[:, :1][~known])
    # The rectangle is 20 x 30; 3 pixels of band and 2 of reach lie on each side.
    assert refiner.seen == [(30, 40, 3)]
    refiner.reach = None
    assert torch.equal(refiner(image, mask), alpha)
    assert refiner.seen[-1] == (40, 60, 3)


def test_a_mask_can_be_the_trimap() -> None:
    image, mask = scene()
    given = mask.clone()
    given[..., 3, 5:9] = 128 / 255
    refiner = RedRefiner(trimap="given")
    alpha = refiner(image, given)
    assert torch.equal(alpha[..., 3, 5:9], image[:, :1, 3, 5:9])
    alpha[..., 3, 5:9] = 0
    assert torch.equal(alpha, mask)
    assert refiner.seen == [(5, 8, 3)]


def test_with_nothing_unknown_nothing_is_solved() -> None:
    image, mask = scene()
    refiner = RedRefiner(band=0)
    assert torch.equal(refiner(image, mask), mask)
    for value in (0.0, 1.0):
        flat = torch.full_like(mask, value)
        assert torch.equal(RedRefiner()(image, flat), flat)
    assert refiner.seen == []


@pytest.mark.parametrize(
    ("known", "words"),
    [(0.0, "no known subject"), (1.0, "no known background"), (0.5, "no known pixel")],
)
def test_without_known_pixels_the_mask_is_kept_and_a_warning_says_why(
    known: float, words: str
) -> None:
    image, _ = scene()
    given = torch.full((1, 1, 40, 60), known)
    given[..., 10:20, 10:20] = 0.4
    refiner = RedRefiner(trimap="given")
    with pytest.warns(UserWarning, match=words):
        alpha = refiner(image, given)
    assert torch.equal(alpha, given)


def test_items_of_which_one_has_nothing_unknown() -> None:
    image, mask = scene()
    refiner = RedRefiner()
    together = refiner(torch.cat([image, image]), torch.cat([torch.ones_like(mask), mask]))
    assert torch.equal(together[1:], refiner(image, mask))
    assert (together[0] == 1).all()


def test_a_smaller_side_is_solved_small_and_carried_up() -> None:
    edge = ((torch.arange(120.0) - 60) / 13 + 0.5).clamp(0, 1)
    image = edge.expand(1, 3, 80, 120)
    mask = (image[:, :1] > 0.5).float()
    refiner = RedRefiner(max_side=60, band=0.1)
    alpha = refiner(image, mask)
    assert refiner.seen == [(40, 17, 3)]
    assert (alpha - image[:, :1]).abs().max() < 0.03
    known = refiner.make_trimap(mask) != 0.5
    assert torch.equal(alpha[known], mask[known])


def test_memory_is_estimated_first_and_the_error_names_a_side_that_fits() -> None:
    image, mask = scene(80, 120)
    with pytest.raises(CompositingError, match=r"red would take about .* 120 x 80 pixels") as said:
        RedRefiner(band=0.05)(image, mask)
    side = int(re.search(r"max_side=(\d+)", str(said.value))[1])
    assert 10 < side < 120
    RedRefiner(band=0.05, max_side=side)(image, mask)
    RedRefiner(band=0.05, max_memory=100)(image, mask)


def test_a_solve_that_did_not_converge_is_said() -> None:
    refiner = RedRefiner(iterations=3)
    spread = np.linspace(1, 1000, 50)
    with pytest.warns(UserWarning, match=r"after 3 iterations its residual is .*, not 1\.0e-07"):
        refiner.iterate(spread.__mul__, np.ones(50), np.copy)
    exact = refiner.iterate(spread.__mul__, np.ones(50), lambda x: x / spread)
    assert np.allclose(exact, 1 / spread)


def test_a_solve_equals_a_dense_one() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=(30, 30))
    a, b = a @ a.T + 0.1 * np.eye(30), random.normal(size=30)
    iterate = RedRefiner(tolerance=1e-10).iterate
    assert np.allclose(iterate(a.dot, b, (1 / np.diag(a)).__mul__), np.linalg.solve(a, b))
    assert not iterate(a.dot, 0 * b, np.copy).any()
    with pytest.warns(UserWarning, match=r"after 7 iterations its residual is (.*), not") as said:
        x = RedRefiner(iterations=7).iterate(a.dot, b, np.copy)
    residual = np.linalg.norm(b - a @ x) / np.linalg.norm(b)
    assert f"{residual:.1e}" in str(said[0].message)
