"""The compositing equation, trimaps, rim bands and grey morphology."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.precision import widen
from deep_image_compositing.functional.resize import resize


def over(foreground_color: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """Composite a subject: ``alpha · foreground_color + (1 − alpha) · background``.

    Colours are straight (not premultiplied) and finite, (B, C, H, W). The result has the widest
    dtype and lies between both colours; it is bit-identical to the background where alpha is 0, to
    the foreground where alpha is 1, and to both where they are equal.
    """
    # Rounding makes a·F + (1−a)·B differ from F for F = B, and B + a·(F−B) for a = 1. torch.lerp
    # uses the latter below a = 0.5 and F − (1−a)·(F−B) from there on, which adds an exact zero at
    # both ends, and everywhere for F = B.
    dtype = torch.promote_types(
        torch.promote_types(foreground_color.dtype, background.dtype), alpha.dtype
    )
    return torch.lerp(background.to(dtype), foreground_color.to(dtype), alpha.to(dtype))


def unknown_band(alpha: Tensor, radius: int, low: float = 0.01, high: float = 0.99) -> Tensor:
    """Mark the rim, (B, 1, H, W) boolean: pixels within ``radius`` (Chebyshev) of an edge.

    Edge pixels have ``low < alpha < high``, or are on either side of a hard edge: at or below
    ``low`` with one of their 8 neighbours at or above ``high``, or vice versa.
    """
    clear, opaque = alpha <= low, alpha >= high
    edge = (clear & dilate(opaque, 1)) | (opaque & dilate(clear, 1))
    return dilate(edge | ~(clear | opaque), radius)


def reconstruct(seeds: Tensor, region: Tensor) -> Tensor:
    """The 8-connected components of ``region`` that hold a seed; all (B, 1, H, W) boolean.

    Morphological reconstruction (Vincent, 1993), for small images: the number of passes is the
    longest path in pixels through a component.
    """
    mask = region.float()
    marker = mask * seeds.float()
    while True:
        before = marker
        for _ in range(8):  # comparing costs more than a pass
            marker = torch.minimum(F.max_pool2d(marker, 3, 1, 1), mask)
        if torch.equal(marker, before):
            return marker > 0


def trimap_from_mask(mask: Tensor, radius: int) -> Tensor:
    """Trimap from a rough mask: unknown within ``radius`` of its outline at 0.5."""
    subject = mask > 0.5
    return (dilate(subject, radius).to(mask.dtype) + erode(subject, radius).to(mask.dtype)) / 2


def trimap_from_levels(gray: Tensor, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Trimap from gray levels: background up to ``low``, subject from ``high``, else unknown."""
    return ((gray > low).to(gray.dtype) + (gray >= high).to(gray.dtype)) / 2


def resize_trimap(trimap: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample ``trimap`` to ``size`` = (height, width); mixed pixels are unknown."""
    return trimap_from_levels(resize(trimap, size), 0.01, 0.99)


def pixels_of_share(share: float, size: tuple[int, int]) -> int:
    """Pixels in a ``share`` of the long side of ``size`` (height, width), at least 1 unless 0.

    Raises ``UsageError`` unless the share lies in [0, 1].
    """
    if not 0 <= share <= 1:
        raise UsageError(f"a share of the picture's long side lies in [0, 1], got {share}")
    return max(1, round(share * max(size))) if share else 0


def feather(mask: Tensor, sigma: float, reach: int = 22) -> Tensor:
    """Blur the outline of a mask in {0, 1} by a Gaussian of deviation ``sigma`` in pixels.

    Pixels farther than ``reach`` along either axis (22 is 31 diagonally) stay bit-identical.
    """
    radius = math.ceil(min(reach, 3 * sigma))
    if radius == 0:
        return mask
    weights = [math.exp(-0.5 * min(step / sigma, 40) ** 2) for step in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    soft = widen(mask)
    for dim in (-2, -1):
        size = soft.shape[dim]
        padded = _repeat_border(soft, radius, dim)
        soft = padded.narrow(dim, radius, size) * (weights[0] / total)
        for step in range(1, radius + 1):
            soft.add_(padded.narrow(dim, radius - step, size), alpha=weights[step] / total)
            soft.add_(padded.narrow(dim, radius + step, size), alpha=weights[step] / total)
    # The rounded weights do not sum to exactly 1.
    return torch.where(unknown_band(mask, radius), soft.clamp(0, 1).to(mask.dtype), mask)


def dilate(x: Tensor, radius: int) -> Tensor:
    """Maximum over squares of ``2 · radius + 1`` pixels of ``x`` (B, C, H, W), of any real dtype.

    Border pixels repeat. The cost grows with the logarithm of the radius.
    """
    return _morphology(x, radius, torch.maximum)


def erode(x: Tensor, radius: int) -> Tensor:
    """Minimum over squares of ``2 · radius + 1`` pixels; see ``dilate``."""
    return _morphology(x, radius, torch.minimum)


def _morphology(x: Tensor, radius: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Running extreme along both axes, by windows of doubling length."""
    for dim in (-2, -1):
        reach = min(radius, x.shape[dim] - 1)
        x = _repeat_border(x, reach, dim)
        window, span = 2 * reach + 1, 1
        while span < window:
            step = min(span, window - span)
            length = x.shape[dim] - step
            x = extreme(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            span += step
    return x


def _repeat_border(x: Tensor, radius: int, dim: int) -> Tensor:
    """Repeat the border pixels at both ends of one axis; unlike F.pad, for every dtype."""
    if radius == 0:
        return x
    shape = list(x.shape)
    shape[dim] = radius
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat((first.expand(shape), x, last.expand(shape)), dim)
