"""The sine-transform solver against a dense solve, and cloning against what it promises."""

from __future__ import annotations

import pytest
import torch

from deep_image_compositing.functional.poisson import poisson_clone, solve_poisson


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def laplacian(x: torch.Tensor) -> torch.Tensor:
    """The five-point Laplacian of (H, W), zeros around it."""
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    around = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
    return around - 4 * x


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 7), (13, 8)])
def test_the_solution_has_the_laplacian_that_was_asked_for(size: tuple[int, int]) -> None:
    right = noise(*size)
    assert torch.allclose(laplacian(solve_poisson(right)), right, atol=1e-10)


def test_a_picture_s_own_gradients_give_the_picture() -> None:
    picture = noise(3, 9, 14)
    inside = torch.zeros(1, 9, 14, dtype=torch.bool)
    inside[:, 2:7, 3:10] = True
    for mixed in (False, True):
        assert torch.allclose(poisson_clone(picture, picture, inside, mixed=mixed), picture)
        brighter = poisson_clone(picture + 0.3, picture, inside, mixed=mixed)
        assert torch.allclose(brighter, picture)


def test_gradients_are_the_subject_s_inside_and_the_border_the_background_s() -> None:
    subject, scene = noise(3, 20, 30), noise(3, 20, 30, seed=1)
    inside = torch.ones(1, 20, 30, dtype=torch.bool)
    cloned = poisson_clone(subject, scene, inside, mixed=False)
    for edge in ((0,), (-1,)):
        assert torch.equal(cloned[:, edge], scene[:, edge])
        assert torch.equal(cloned[:, :, edge], scene[:, :, edge])
    for channel in range(3):
        own = laplacian(cloned[channel])[1:-1, 1:-1]
        assert torch.allclose(own, laplacian(subject[channel])[1:-1, 1:-1])


def test_mixed_keeps_the_stronger_gradient() -> None:
    flat, inside = torch.full((3, 12, 12), 0.4).double(), torch.ones(1, 12, 12, dtype=torch.bool)
    textured = noise(3, 12, 12)
    assert torch.allclose(poisson_clone(flat, textured, inside, mixed=True), textured)
    assert torch.allclose(
        poisson_clone(textured, flat, inside, mixed=True),
        poisson_clone(textured, flat, inside, mixed=False),
    )
