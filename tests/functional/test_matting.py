"""The matting Laplacian against an independent one, and the solver against a dense solve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.matting import (
    MattingLaplacian,
    closed_form,
    guided_filter,
    solve_alpha,
)


def noise(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


def dense(image: Tensor, epsilon: float, radius: int = 1) -> Tensor:
    """The Laplacian of one picture as a matrix: the operator on every unit vector."""
    size = image.shape[-2] * image.shape[-1]
    unit = torch.eye(size, dtype=image.dtype).view(size, 1, *image.shape[-2:])
    laplacian = MattingLaplacian.of(image, epsilon, radius)
    return torch.cat([laplacian(row[None]).reshape(1, -1) for row in unit]).T


def clipped_windows(image: np.ndarray, epsilon: float, radius: int) -> np.ndarray:
    """Levin et al.'s equation 12, summed window by window, windows cut off at the border."""
    height, width = image.shape[:2]
    matrix = np.zeros((height * width, height * width))
    for y in range(height):
        for x in range(width):
            rows = range(max(0, y - radius), min(height, y + radius + 1))
            columns = range(max(0, x - radius), min(width, x + radius + 1))
            place = np.array([i * width + j for i in rows for j in columns])
            colors = image.reshape(-1, 3)[place]
            centred = colors - colors.mean(0)
            covariance = centred.T @ centred / len(place) + epsilon * np.eye(3)
            affinity = (1 + centred @ np.linalg.solve(covariance, centred.T)) / len(place)
            matrix[np.ix_(place, place)] += np.eye(len(place)) - affinity
    return matrix


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("size", [(6, 7), (1, 9), (2, 3)])
def test_equals_the_definition_window_by_window(size: tuple[int, int], radius: int) -> None:
    image = noise(*size)
    # The pivots are regularised one by one, which is the ridge itself up to its own size.
    for epsilon in (1e-7, 1e-5):
        expected = clipped_windows(image[0].permute(1, 2, 0).numpy(), epsilon, radius)
        assert np.allclose(dense(image, epsilon, radius).numpy(), expected, atol=200 * epsilon)


def test_the_guided_filter_is_what_the_laplacian_takes_off() -> None:
    image, mask = noise(9, 12, 2), noise(9, 12, 2, seed=1)[:, :1]
    laplacian = MattingLaplacian.of(image, 1e-3, 2)
    filtered = guided_filter(image, mask, 2, 1e-3)
    assert torch.allclose(laplacian(mask), laplacian.count * (mask - filtered), atol=1e-9)


def band(height: int, width: int, low: int, high: int) -> Tensor:
    """Trimap: background left of ``low``, subject from ``high`` on, unknown between."""
    trimap = torch.full((1, 1, height, width), 0.5, dtype=torch.float64)
    trimap[..., :low] = 0
    trimap[..., high:] = 1
    return trimap


def test_solver_equals_a_dense_solve() -> None:
    image, trimap = noise(7, 10), band(7, 10, 3, 7)
    start = noise(7, 10, seed=2)[:, :1]
    unknown = (trimap == 0.5).view(-1)
    matrix = dense(image, 1e-3)
    known = trimap.reshape(-1)[~unknown]
    right = -matrix[unknown][:, ~unknown] @ known
    expected = trimap.clone().view(-1)
    expected[unknown] = torch.linalg.solve(matrix[unknown][:, unknown], right)
    solved = solve_alpha(image, trimap, start, 300, epsilon=1e-3)
    assert torch.allclose(solved.view(-1), expected.clamp(0, 1), atol=1e-4)


def test_recovers_the_alpha_of_two_flat_colours() -> None:
    truth = ((torch.arange(40.0) - 20) / 12 + 0.5).clamp(0, 1).expand(1, 1, 24, 40)
    front = torch.tensor([0.9, 0.3, 0.1]).view(1, 3, 1, 1)
    back = torch.tensor([0.1, 0.4, 0.8]).view(1, 3, 1, 1)
    image = truth * front + (1 - truth) * back
    trimap = torch.where((truth > 0) & (truth < 1), 0.5, truth)
    start = torch.full_like(truth, 0.5)
    assert (solve_alpha(image, trimap, start, 100) - truth).abs().max() < 0.02
    assert (closed_form(image, trimap, start) - truth).abs().mean() < 0.02


@pytest.mark.parametrize("iterations", [30, 300])
def test_without_any_known_pixel_it_stays_finite(iterations: int) -> None:
    for size in ((1, 1), (1, 7), (9, 9)):
        image = noise(*size).float()
        nothing = torch.full((1, 1, *size), 0.5)
        solved = solve_alpha(image, nothing, image[:, :1], iterations)
        assert solved.isfinite().all()
        flat = solve_alpha(image * 0, nothing, image[:, :1], iterations)
        assert flat.isfinite().all()


def test_closed_form_keeps_known_pixels() -> None:
    image, trimap = noise(25, 37, 2).float(), band(25, 37, 12, 22).float().expand(2, -1, -1, -1)
    start = noise(25, 37, 2, seed=4).float()[:, :1]
    solved = closed_form(image, trimap, start)
    known = trimap != 0.5
    assert torch.equal(solved[known], trimap[known])
    assert solved.min() >= 0
    assert solved.max() <= 1
    for i in range(2):
        alone = closed_form(image[i : i + 1], trimap[i : i + 1], start[i : i + 1])
        assert torch.allclose(alone, solved[i : i + 1], atol=1e-4)
