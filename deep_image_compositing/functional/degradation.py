"""Degradation of true alphas into realistic imperfect masks, for training."""

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
    """Degrade true alphas into masks like those of segmenters and coarse annotations.

    Each item is degraded at random. First its outline is displaced (by thresholding the blurred
    alpha plus smooth noise), simplified (by thresholding at a low resolution), or thresholded at a
    random level. Then the mask may grow or shrink, gain or lose blobs near its outline, and be
    blurred. Sizes are fractions of the longer side at strength 1. The result has the dtype of
    ``alpha`` and no gradient.

    Args:
        alpha: true alphas.
        generator: random generator on any device; None for the global one.
        strength: factor on all sizes, and below 1 also on the fraction of degraded items; 0 returns
            ``alpha`` unchanged.
        jitter: maximum displacement of the outline.
        coarseness: pixel size of the low resolution that simplifies the outline.
        growth: maximum growth or shrinkage.
        blobs: size of blobs and their maximum distance from the outline.
        softness: radius of the blur, and pixel size of the low resolution used for blurring.
        exact: fraction in [0, 1] of unchanged items, from which a network learns to keep good
            masks.
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
    # A single draw for the full batch, to synchronise with the device only once.
    draws = _uniform((alpha.shape[0], _DRAWS), generator).tolist()
    pixels = tuple(scale * size for size in sizes.values())
    items = [
        item if u[0] >= changed else _degrade(item.float(), u, pixels, generator).to(alpha.dtype)
        for item, u in zip(alpha.split(1), draws, strict=True)
    ]
    return torch.cat(items)


def _degrade(
    mask: Tensor, u: list[float], pixels: tuple[float, ...], generator: torch.Generator | None
) -> Tensor:
    """Degrade one item by uniform draws ``u``, with sizes in pixels."""
    jitter, coarseness, growth, blobs, softness = pixels
    if u[1] < 0.5:
        mask = _displace(mask, jitter * u[2], u[3], u[4], generator)
    elif u[1] < 0.75:
        mask = _threshold(_low_resolution(mask, 1 + coarseness * u[2]), 0.3 + 0.4 * u[3])
    else:
        mask = _threshold(mask, 0.05 + 0.9 * u[3])
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
    """Noise (1, 1, H, W) in [-1, 1] with features of about ``cell`` pixels."""
    height, width = (2 + int(side / max(2.0, cell)) for side in mask.shape[-2:])
    grid = 2 * _uniform((1, 1, height, width), generator).to(mask.device) - 1
    # Bicubic resampling overshoots, which would cut holes far from any outline.
    return resize(grid, (mask.shape[-2], mask.shape[-1]), "bicubic").clamp(-1, 1)


def _threshold(mask: Tensor, level: float) -> Tensor:
    return (mask > level).to(mask.dtype)


def _displace(
    mask: Tensor, reach: float, amount: float, grain: float, generator: torch.Generator | None
) -> Tensor:
    """Displace the outline by up to about ``reach`` pixels, inwards and outwards."""
    # Two box filters make a ramp of 2·reach to either side; noise shifts the threshold.
    ramp = box_filter(box_filter(mask, round(reach)), round(reach))
    noise = _smooth_noise(mask, max(2.0, reach) * 2 ** (3 * grain), generator)
    return _threshold(ramp + 0.45 * amount * noise, 0.5)


def _low_resolution(mask: Tensor, pixel: float) -> Tensor:
    """Downsample ``mask`` by a factor of ``pixel`` and upsample it again."""
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
