"""Poisson cloning: to the pixel where the subject was, and alpha blending where it cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.compose import over
from deep_image_compositing.models.fusion import poisson
from deep_image_compositing.registry import create

pytest.importorskip("cv2")

MODES = pytest.mark.parametrize("mode", ["normal", "mixed"])


def scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two smooth 8-bit pictures, the first one darker."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 5, 7, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    fine = ((fine.clamp(0, 1) * 0.5 + torch.tensor([0.05, 0.4]).view(2, 1, 1, 1)) * 255).round()
    return fine[:1] / 255, fine[1:] / 255


def box(size: tuple[int, int], top: int, bottom: int, left: int, right: int) -> Tensor:
    alpha = torch.zeros(1, 1, *size)
    alpha[..., top:bottom, left:right] = 1
    return alpha


BOXES = [
    (5, 25, 8, 31),
    (6, 25, 8, 30),
    (5, 24, 9, 31),
    (0, 20, 0, 23),
    (19, 40, 20, 50),
    (0, 39, 1, 50),
    (0, 40, 20, 35),
]


@MODES
@pytest.mark.parametrize("where", BOXES)
def test_the_subject_stays_where_it_was(mode: str, where: tuple[int, int, int, int]) -> None:
    top, bottom, left, right = where
    back = torch.full((1, 3, 40, 50), 0.5)
    front = back.clone()
    y, x = (top + bottom) // 2 + 1, (left + right) // 2 - 2
    front[..., y, x] = 0.9
    composite = create("fuser", "poisson", mode=mode)(front, back, box((40, 50), *where))
    change = (composite - back)[0, 0]
    assert divmod(int(change.argmax()), 50) == (y, x)
    assert change[y, x] > 0.3
    beyond = box((40, 50), *where)[0, 0] == 0
    assert torch.equal(composite[..., beyond], back[..., beyond])


@pytest.mark.parametrize("size", [(40, 50), (41, 51)])
def test_our_solver_is_opencvs(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    front, back = scene(*size)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    expected = create("fuser", "poisson")
    ours = create("fuser", "poisson", mode="mixed")
    clone = poisson.poisson_clone
    monkeypatch.setattr(poisson, "poisson_clone", lambda *args, mixed: clone(*args, mixed=False))
    for centre in ((20, 24), (31, 12)):  # in the middle, and cut off at the bottom
        alpha = (((y - centre[0]) ** 2 + (x - centre[1]) ** 2) < 14**2).float()[None, None]
        answer = ours(front, back, alpha)
        assert (answer - expected(front, back, alpha)).abs().max() < 1.5 / 255
        assert (answer - over(front, alpha, back)).abs().max() > 0.1


@MODES
@pytest.mark.parametrize(
    "alpha",
    [
        torch.zeros(1, 1, 9, 11),
        torch.ones(1, 1, 9, 11),
        torch.full((1, 1, 9, 11), 0.3),
        box((9, 11), 4, 5, 5, 6),
        box((9, 11), 2, 8, 5, 7),
        torch.full((1, 1, 1, 1), 0.7),
    ],
    ids=["empty", "full", "below the threshold", "one pixel", "two columns", "1 x 1"],
)
def test_what_cannot_be_cloned_is_alpha_blending(mode: str, alpha: Tensor) -> None:
    front, back = scene(*alpha.shape[-2:])
    composite = create("fuser", "poisson", mode=mode)(front, back, alpha)
    assert torch.equal(composite, over(front, alpha, back))


def test_a_higher_threshold_clones_less() -> None:
    front, back = scene(30, 40)
    alpha = box((30, 40), 5, 25, 5, 35)
    alpha[..., :20] *= 0.6
    low = create("fuser", "poisson")(front, back, alpha)
    high = create("fuser", "poisson", threshold=0.7)(front, back, alpha)
    left = (high - back)[..., :19].abs().max()
    assert left == 0
    assert (low - back)[..., :19].abs().max() > 0.05


# The solver


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def laplacian(x: Tensor) -> Tensor:
    """The five-point Laplacian of (H, W), zeros around it."""
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    around = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
    return around - 4 * x


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 7), (13, 8)])
def test_the_solution_has_the_laplacian_that_was_asked_for(size: tuple[int, int]) -> None:
    right = noise(*size)
    assert torch.allclose(laplacian(poisson.solve_poisson(right)), right, atol=1e-10)


def test_a_picture_s_own_gradients_give_the_picture() -> None:
    picture = noise(3, 9, 14)
    inside = torch.zeros(1, 9, 14, dtype=torch.bool)
    inside[:, 2:7, 3:10] = True
    for mixed in (False, True):
        assert torch.allclose(poisson.poisson_clone(picture, picture, inside, mixed=mixed), picture)
        brighter = poisson.poisson_clone(picture + 0.3, picture, inside, mixed=mixed)
        assert torch.allclose(brighter, picture)


def test_mixed_keeps_the_stronger_gradient() -> None:
    flat, inside = torch.full((3, 12, 12), 0.4).double(), torch.ones(1, 12, 12, dtype=torch.bool)
    textured = noise(3, 12, 12)
    assert torch.allclose(poisson.poisson_clone(flat, textured, inside, mixed=True), textured)
    assert torch.allclose(
        poisson.poisson_clone(textured, flat, inside, mixed=True),
        poisson.poisson_clone(textured, flat, inside, mixed=False),
    )
