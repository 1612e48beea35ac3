"""The four errors of alpha mattes, per image: SAD, MSE, Gradient and Connectivity.

Defined by Rhemann et al. (CVPR 2009), with the constants and units of Xu et al., "Deep image
matting" (CVPR 2017). Errors cover the trimap's unknown pixels, or the whole image without a trimap.
``alpha``, ``truth`` and ``trimap`` are (1, H, W) in [0, 1]; different shapes raise ``UsageError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.metrics.composites import check_pair

SIGMA = 1.4  # standard deviation, in pixels, of the Gaussian whose derivatives Gradient compares
STEP = 0.1  # spacing of the levels of Connectivity
TOLERANCE = 0.15
"""Theta: an alpha less than this above its connected level counts as fully connected."""


def sad(alpha: Tensor, truth: Tensor, trimap: Tensor | None = None) -> float:
    """Sum of absolute differences, in thousands."""
    a, t, unknown = _checked(alpha, truth, trimap)
    return float((a - t).abs()[unknown].sum()) / 1000


def mse(alpha: Tensor, truth: Tensor, trimap: Tensor | None = None) -> float:
    """Mean squared difference; NaN if no pixel is unknown."""
    a, t, unknown = _checked(alpha, truth, trimap)
    return float(((a - t) ** 2)[unknown].mean())


def gradient_error(alpha: Tensor, truth: Tensor, trimap: Tensor | None = None) -> float:
    """Sum of squared differences of gradient magnitudes, in thousands.

    Gradients come from Gaussian derivative filters of sigma 1.4, 9 pixels wide and of unit energy;
    the border is replicated.
    """
    a, t, unknown = _checked(alpha, truth, trimap)
    return float(((_magnitude(a) - _magnitude(t)) ** 2)[unknown].sum()) / 1000


def connectivity_error(alpha: Tensor, truth: Tensor, trimap: Tensor | None = None) -> float:
    """Difference in how well the pixels of the two alphas connect to the subject, in thousands.

    For each level 0.1, 0.2, ... 1, take the largest 4-connected region of pixels that reach the
    level in both alphas. A pixel's connected level ``l`` is the level before the first region
    without it. Its degree of connectivity in an alpha is ``1 - d`` with ``d = alpha - l``, or 1
    if ``d < 0.15``; the error is the sum of absolute differences of the degrees (p = 1). Raises
    ``MissingExtraError`` without scipy.
    """
    import_extra("scipy", "the measure Connectivity")
    a, t, unknown = (x.numpy() for x in _checked(alpha, truth, trimap))
    common = np.minimum(a, t)
    connected_level = np.ones_like(common)
    connected = np.ones(common.shape, bool)
    count = round(1 / STEP)
    for i in range(1, count + 1):
        lost = connected & ~_largest_region(common >= i / count)
        connected_level[lost] = (i - 1) / count
        connected &= ~lost
    distances = a - connected_level, t - connected_level
    degrees = [1 - distance * (distance >= TOLERANCE) for distance in distances]
    return float(np.abs(degrees[0] - degrees[1])[unknown].sum()) / 1000


def _checked(alpha: Tensor, truth: Tensor, trimap: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both alphas (H, W) in double precision and the unknown pixels, on the CPU."""
    check_pair(alpha, truth, 1)
    if trimap is None:
        unknown = torch.ones(alpha.shape[1:], dtype=torch.bool)
    elif trimap.shape != alpha.shape:
        raise UsageError(
            f"trimap must have the shape of alpha, {tuple(alpha.shape)}, got {tuple(trimap.shape)}"
        )
    else:
        unknown = ((trimap > 0.1) & (trimap < 0.9))[0].cpu()
    return alpha[0].cpu().double(), truth[0].cpu().double(), unknown


def _magnitude(alpha: Tensor) -> Tensor:
    scale = SIGMA * math.sqrt(2 * math.pi)
    # Where the Gaussian falls to 0.01, as in the benchmark's script.
    radius = math.ceil(SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * SIGMA * 0.01)))
    steps = range(-radius, radius + 1)
    smooth = [math.exp(-((x / SIGMA) ** 2) / 2) / scale for x in steps]
    slope = [-x * g for x, g in zip(steps, smooth, strict=True)]
    smooth, slope = ([w / math.hypot(*weights) for w in weights] for weights in (smooth, slope))
    plane = F.pad(alpha[None], (radius,) * 4, mode="replicate")[0]
    return torch.hypot(_correlate(plane, smooth, slope), _correlate(plane, slope, smooth))


def _correlate(plane: Tensor, vertical: Sequence[float], horizontal: Sequence[float]) -> Tensor:
    """Correlate a plane (H, W) with a separable kernel, without padding."""
    # Accumulating whole planes is about ten times as fast as conv2d on a CPU.
    for dim, weights in ((1, horizontal), (0, vertical)):
        length = plane.shape[dim] - len(weights) + 1
        total = plane.narrow(dim, 0, length) * weights[0]
        for i in range(1, len(weights)):
            total.add_(plane.narrow(dim, i, length), alpha=weights[i])
        plane = total
    return plane


def _largest_region(reached: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels, _ = ndimage.label(reached)
    sizes = np.bincount(labels.ravel())
    if sizes.size < 2:
        return np.zeros_like(reached)
    return labels == 1 + sizes[1:].argmax()
