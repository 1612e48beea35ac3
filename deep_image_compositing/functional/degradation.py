"""Degrades true alphas into masks as bad as predicted ones, for training batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.functional.compose import dilate, erode
from deep_image_compositing.functional.foreground import box_filter
from deep_image_compositing.functional.resize import fit_long_side, resize

_DRAWS = 16


@torch.no_grad()
def degrade_mask(
    alpha: Tensor,
    generator: torch.Generator | None = None,
    strength: float = 1.0,
    *,
    jitter: float = 0.02,
    coarseness: float = 0.03,
    growth: float = 0.012,
    blobs: float = 0.03,
    softness: float = 0.008,
    exact: float = 0.1,
) -> Tensor:
    """Degrade true alphas into masks such as a segmenter, a coarse annotation or a hand gives.

    Every item draws its own mix. First the outline wanders (blurred alpha plus smooth noise is cut
    at a level), is simplified (alpha at a low resolution is cut), or cut at a random level. Then
    the mask may grow or shrink, lose or gain blobs near its outline, and be softened. Sizes are
    shares of the longer side at strength 1. The answer has the dtype of ``alpha`` and no gradient.

    Args:
        alpha: true alphas.
        generator: source of all randomness, on any device; None for the global one.
        strength: scales every size, and below 1 also the share of items that change at all;
            0 returns ``alpha`` itself.
        jitter: how far the outline wanders.
        coarseness: pixel of the low resolution that simplifies the outline.
        growth: how far the mask grows or shrinks.
        blobs: size of blobs, and how far from the outline they appear.
        softness: radius of the blur, and pixel of the low resolution that softens.
        exact: share in [0, 1] of items that keep their alpha: good masks are to be left alone.
    """
    sizes = {"jitter": jitter, "coarseness": coarseness, "growth": growth}
    sizes |= {"blobs": blobs, "softness": softness}
    for name, value in {**sizes, "strength": strength, "exact": exact}.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} must be a finite number of at least 0, got {value}")
    if exact > 1:
        raise UsageError(f"exact is a share of the items and must lie in [0, 1], got {exact}")
    if strength == 0:
        return alpha
    scale = strength * max(alpha.shape[-2:])
    changed = min(1.0, strength) * (1 - exact)
    # All decisions of the batch in one draw: one wait for the device instead of dozens.
    draws = _uniform((alpha.shape[0], _DRAWS), generator).tolist()
    pixels = tuple(scale * size for size in sizes.values())
    items = [
        item if u[0] >= changed else _degraded(item.float(), u, pixels, generator).to(alpha.dtype)
        for item, u in zip(alpha.split(1), draws, strict=True)
    ]
    return torch.cat(items)


def _degraded(
    mask: Tensor, u: list[float], pixels: tuple[float, ...], generator: torch.Generator | None
) -> Tensor:
    """One item by its draws ``u``, with sizes in pixels."""
    jitter, coarseness, growth, blobs, softness = pixels
    if u[1] < 0.5:
        mask = _wander(mask, jitter * u[2], u[3], u[4], generator)
    elif u[1] < 0.75:
        mask = _cut(_low_resolution(mask, 1 + coarseness * u[2]), 0.3 + 0.4 * u[3])
    else:
        mask = _cut(mask, 0.05 + 0.9 * u[3])
    if u[5] < 0.4:
        radius = round(growth * u[6])
        mask = dilate(mask, radius) if u[7] < 0.5 else erode(mask, radius)
    if u[8] < 0.3:
        mask = _add_blobs(mask, blobs * (0.2 + 0.8 * u[9]), u[10] < 0.5, generator)
    if u[11] < 0.3:
        mask = _low_resolution(mask, 1 + softness * u[12])
    elif u[11] < 0.6:
        radius = round(softness * u[12])
        mask = box_filter(box_filter(mask, radius), radius)
    return mask.clamp(0, 1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device)


def _smooth_noise(mask: Tensor, cell: float, generator: torch.Generator | None) -> Tensor:
    """Noise (1, 1, H, W) in [-1, 1] that varies over about ``cell`` pixels."""
    height, width = (2 + int(side / max(2.0, cell)) for side in mask.shape[-2:])
    grid = 2 * _uniform((1, 1, height, width), generator).to(mask.device) - 1
    # Bicubic overshoots, and noise beyond its range would cut holes far from any outline.
    return resize(grid, (mask.shape[-2], mask.shape[-1]), "bicubic").clamp(-1, 1)


def _cut(mask: Tensor, level: float) -> Tensor:
    return (mask > level).to(mask.dtype)


def _wander(
    mask: Tensor, reach: float, amount: float, grain: float, generator: torch.Generator | None
) -> Tensor:
    """Move the outline by up to about ``reach`` pixels, here outwards and there inwards."""
    # Two boxes make a ramp of 2·reach to either side; noise shifts the level that cuts it.
    ramp = box_filter(box_filter(mask, round(reach)), round(reach))
    noise = _smooth_noise(mask, max(2.0, reach) * 2 ** (3 * grain), generator)
    return _cut(ramp + 0.45 * amount * noise, 0.5)


def _low_resolution(mask: Tensor, pixel: float) -> Tensor:
    """``mask`` after a round trip through a resolution whose pixels are ``pixel`` pixels wide."""
    height, width = mask.shape[-2:]
    small = fit_long_side(height, width, max(1, round(max(height, width) / pixel)))
    return resize(resize(mask, small), (height, width))


def _add_blobs(mask: Tensor, size: float, gain: bool, generator: torch.Generator | None) -> Tensor:
    """Add (``gain``) or remove blobs of about ``size`` pixels within ``size`` of the outline."""
    radius = max(1, round(size))
    blob = _smooth_noise(mask, 3 * size, generator) > 0.45
    if gain:
        return torch.where(blob, torch.maximum(mask, dilate(mask, radius)), mask)
    return torch.where(blob, torch.minimum(mask, erode(mask, radius)), mask)
