"""Conjugate gradients over NumPy vectors that tell how far they came; matting solves call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """What an iterative solve arrived at.

    Attributes:
        x: the solution, (N,).
        residual: length of ``b − A x`` relative to that of ``b``.
        iterations: steps that were made.
        converged: whether the residual fell below the tolerance.
    """

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
    """Solve ``A x = b`` for a symmetric positive matrix from products with it.

    Args:
        product: ``x → A x``.
        b: (N,), the right-hand side; of zeros alone, so is the solution.
        precondition: an approximate inverse of A applied to a vector.
        tolerance: residual relative to ``b`` at which the solve ends.
        iterations: steps after which it ends all the same, with the best it has.
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
