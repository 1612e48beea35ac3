"""Conjugate gradients over NumPy vectors that report how far they came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """Result of an iterative solve; ``residual`` is relative to the right-hand side."""

    x: Vector
    residual: float
    iterations: int
    converged: bool


def conjugate_gradients(
    product: Callable[[Vector], Vector],
    b: Vector,
    precondition: Callable[[Vector], Vector],
    *,
    tolerance: float = 1e-7,
    iterations: int = 2000,
) -> Solution:
    """Solve ``A x = b``, (N,), for a symmetric positive matrix, given by its ``product``.

    ``precondition`` is an approximate inverse of A. The solve ends at a residual of ``tolerance``,
    relative to ``b``, or after ``iterations`` steps with the best solution so far.
    """
    x = np.zeros_like(b)
    scale = float(np.linalg.norm(b))
    if scale == 0:
        return Solution(x, 0.0, 0, True)
    best, least = x.copy(), 1.0
    r = b.copy()
    z = precondition(r)
    p = z.copy()
    rho = float(r @ z)
    for step in range(1, iterations + 1):
        q = product(p)
        curvature = float(p @ q)
        if not curvature > 0:  # rounding is all that is left, or A is not positive
            break
        x += rho / curvature * p
        r -= rho / curvature * q
        residual = float(np.linalg.norm(r)) / scale
        if residual <= tolerance:
            return Solution(x, residual, step, True)
        if residual < least:
            best[:], least = x, residual
        z = precondition(r)
        before, rho = rho, float(r @ z)
        p *= rho / before
        p += z
    else:
        step = iterations
    return Solution(best, least, step, False)
