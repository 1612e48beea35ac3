"""Conjugate gradients against a dense solve, and what they say when they stop early."""

from __future__ import annotations

import numpy as np
import pytest

from deep_image_compositing.functional.solve import conjugate_gradients


def system(size: int = 30) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    a = random.normal(size=(size, size))
    return a @ a.T + 0.1 * np.eye(size), random.normal(size=size)


def test_equals_a_dense_solve_and_tells_its_residual() -> None:
    a, b = system()
    inverse_diagonal = 1 / np.diag(a)
    solution = conjugate_gradients(a.dot, b, inverse_diagonal.__mul__, tolerance=1e-10)
    assert solution.converged
    assert 0 < solution.iterations < 200
    assert np.allclose(solution.x, np.linalg.solve(a, b))
    assert solution.residual == pytest.approx(
        np.linalg.norm(b - a @ solution.x) / np.linalg.norm(b), abs=1e-10
    )


def test_stopped_early_it_says_so_and_gives_the_best_it_had() -> None:
    a, b = system()
    solution = conjugate_gradients(a.dot, b, np.copy, iterations=7)
    assert not solution.converged
    assert solution.iterations == 7
    assert 1e-7 < solution.residual <= 1
    left = np.linalg.norm(b - a @ solution.x) / np.linalg.norm(b)
    assert solution.residual == pytest.approx(left)


def test_a_right_hand_side_of_zeros_has_a_solution_of_zeros() -> None:
    a, b = system()
    solution = conjugate_gradients(a.dot, 0 * b, np.copy)
    assert solution.converged
    assert not solution.x.any()


def test_a_matrix_that_is_not_positive_does_not_converge() -> None:
    solution = conjugate_gradients(np.negative, np.ones(3), np.copy)
    assert not solution.converged
    assert np.isfinite(solution.x).all()
