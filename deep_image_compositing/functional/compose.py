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
    """Set a subject over a background: ``alpha · foreground_color + (1 − alpha) · background``.

    Colours are straight (not premultiplied) and finite, (B, C, H, W); the result has the widest
    dtype, and never leaves the interval between them. Bit for bit, where alpha is 0 it is the
    background, where it is 1 the foreground colour, and equal colours stay.
    """
    # The textbook form a·F + (1−a)·B breaks the third promise (0.1·F + 0.9·F is not F), and
    # B + a·(F−B) the second (B + (F−B) is not F once F−B was rounded). torch.lerp takes the
    # second form below a = 0.5 and F − (1−a)·(F−B) from there on, so at both ends it adds an
    # exact zero to an exact colour, and for F = B everywhere.
    dtype = torch.promote_types(
        torch.promote_types(foreground_color.dtype, background.dtype), alpha.dtype
    )
    return torch.lerp(background.to(dtype), foreground_color.to(dtype), alpha.to(dtype))


def unknown_band(alpha: Tensor, radius: int, low: float = 0.01, high: float = 0.99) -> Tensor:
    """Mark the rim, (B, 1, H, W) boolean: within ``radius`` (Chebyshev) of where the subject ends.

    There is ``low < alpha < high``, or a pixel at or below ``low`` touches one at or above
    ``high`` (diagonals count): of a hard edge, both sides.
    """
    clear, opaque = alpha <= low, alpha >= high
    edge = (clear & dilate(opaque, 1)) | (opaque & dilate(clear, 1))
    return dilate(edge | ~(clear | opaque), radius)


def reconstruct(seeds: Tensor, region: Tensor) -> Tensor:
    """The 8-connected parts of ``region`` that hold a seed; all (B, 1, H, W) boolean.

    Vincent, 1993; for reduced pictures: it takes a pass a pixel of the longest way through a part.
    """
    room = region.float()
    found = room * seeds.float()
    while True:
        before = found
        for _ in range(8):  # looking at the result costs more than a pass
            found = torch.minimum(F.max_pool2d(found, 3, 1, 1), room)
        if torch.equal(found, before):
            return found > 0


def trimap_from_mask(mask: Tensor, radius: int) -> Tensor:
    """A rough mask as a trimap: unknown within ``radius`` of its outline at one half."""
    subject = mask > 0.5
    return (dilate(subject, radius).to(mask.dtype) + erode(subject, radius).to(mask.dtype)) / 2


def trimap_from_levels(gray: Tensor, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Gray levels as a trimap: up to ``low`` background, from ``high`` on subject, else unknown."""
    return ((gray > low).to(gray.dtype) + (gray >= high).to(gray.dtype)) / 2


def resize_trimap(trimap: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample ``trimap`` to ``size`` = (height, width); mixed pixels are unknown."""
    return trimap_from_levels(resize(trimap, size), 0.01, 0.99)


def pixels_of_share(share: float, size: tuple[int, int]) -> int:
    """A ``share`` of the long side of ``size`` (height, width) in pixels, at least 1 unless 0.

    Raises ``UsageError`` unless the share lies in [0, 1].
    """
    if not 0 <= share <= 1:
        raise UsageError(f"a share of the picture's long side lies in [0, 1], got {share}")
    return max(1, round(share * max(size))) if share else 0


def feather(mask: Tensor, sigma: float, reach: int = 22) -> Tensor:
    """Soften the outline of a hard mask, in {0, 1}, by a Gaussian of deviation ``sigma`` in pixels.

    Farther than ``reach`` along either axis (22 are 31 across) it is ``mask``, bit for bit.
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
    # Rounded weights do not quite add up to 1.
    return torch.where(unknown_band(mask, radius), soft.clamp(0, 1).to(mask.dtype), mask)


def dilate(x: Tensor, radius: int) -> Tensor:
    """Maximum over squares of ``2 · radius + 1`` pixels of ``x`` (B, C, H, W), of any real dtype.

    Beyond the border, the border pixel repeats. The cost grows with the logarithm of the radius.
    """
    return _morphology(x, radius, torch.maximum)


def erode(x: Tensor, radius: int) -> Tensor:
    """Minimum over squares of ``2 · radius + 1`` pixels; see ``dilate``."""
    return _morphology(x, radius, torch.minimum)


def _morphology(x: Tensor, radius: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    for dim in (-2, -1):
        x = _running(x, min(radius, x.shape[dim] - 1), dim, extreme)
    return x


def _running(
    x: Tensor, radius: int, dim: int, extreme: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Extreme over windows of ``2 · radius + 1`` along one axis, of windows that double."""
    if radius == 0:
        return x
    x = _repeat_border(x, radius, dim)
    window, span = 2 * radius + 1, 1
    while span < window:
        step = min(span, window - span)
        length = x.shape[dim] - step
        x = extreme(x.narrow(dim, 0, length), x.narrow(dim, step, length))
        span += step
    return x


def _repeat_border(x: Tensor, radius: int, dim: int) -> Tensor:
    """Repeat the border pixels on both ends of one axis; unlike F.pad, for every dtype."""
    shape = list(x.shape)
    shape[dim] = radius
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat((first.expand(shape), x, last.expand(shape)), dim)
