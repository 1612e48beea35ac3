"""Heuristic estimate of an image's light direction and softness, for plausible shadows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_image_compositing.functional.linear import LUMINANCE, to_linear
from deep_image_compositing.functional.resize import fit_long_side, resize

SIDE = 64  # long side in pixels at which images are analysed
TILT = 0.7  # minimum brightness difference in stops between the sides for light from one side
EXPLAINED = 0.6  # minimum share of the columns' variance explained by a linear tilt
GLARE = 2.5  # stops by which a visible light source exceeds the median brightness
SMALL = 0.06  # maximum area of a light source, as a fraction of the image; more is sky
NARROW = 0.12  # maximum spread of a light source, as a fraction of the image size
SIDEWAYS = 35.0  # degrees by which sideways shadows point away from the viewer
HARD, SOFT = 4.5, 1.2  # contrast of the ground in stops under hard and soft light
LEAST, MOST = 0.2, 0.85  # limits of the softness, as dark objects look like hard light
PLAIN = 0.3  # contrast in stops below which an image is too uniform for an estimate


@dataclass(frozen=True)
class Light:
    """Estimated light; None for what cannot be estimated."""

    direction: float | None  # of shadows in degrees: 0 right, 90 away from the viewer
    softness: float | None  # from 0, direct sun, to 1, overcast sky


def guess_light(picture: Tensor) -> Light:
    """Estimate the light of ``picture`` (3, H, W), sRGB in [0, 1].

    A small light source in its upper part casts shadows towards the viewer; otherwise light comes
    from the side that is clearly brighter. Its softness follows from the contrast of the lower
    half, which shows the ground.
    """
    size = fit_long_side(picture.shape[-2], picture.shape[-1], SIDE)
    small = resize(picture[None].float(), size)[0].clamp(0, 1)
    weights = small.new_tensor(LUMINANCE)[:, None, None]
    stops = ((to_linear(small) * weights).sum(0) + 0.004).log2()
    low, high = stops.flatten().quantile(stops.new_tensor([0.05, 0.95])).tolist()
    if min(size) < 4 or high - low < PLAIN:
        return Light(None, None)
    direction = _direction_of_backlight(stops)
    if direction is None:
        direction = _direction_of_sidelight(stops)
    ground = stops[size[0] // 2 :].flatten()
    low, high = ground.quantile(ground.new_tensor([0.1, 0.9])).tolist()
    softness = (HARD - (high - low)) / (HARD - SOFT)
    return Light(direction, min(MOST, max(LEAST, softness)))


def _direction_of_backlight(stops: Tensor) -> float | None:
    """Shadow direction for a light source in the image, or None."""
    height, width = stops.shape
    upper = stops[: max(1, round(0.7 * height))]
    bright = float(upper.max())
    rows, columns = (upper > bright - 0.7).nonzero(as_tuple=True)
    if bright < -1 or bright - float(stops.median()) < GLARE or len(rows) > SMALL * stops.numel():
        return None
    positions = torch.stack([rows / height, columns / width]).double()
    if positions.std(1, correction=0).max() > NARROW:
        return None
    x = (float(columns.double().mean()) + 0.5) / width - 0.5
    return math.degrees(math.atan2(-1.0, -2 * x)) % 360


def _direction_of_sidelight(stops: Tensor) -> float | None:
    """Shadow direction if one side is clearly brighter, or None."""
    profile = stops.mean(0)
    columns = (torch.arange(len(profile)) + 0.5) / len(profile) - 0.5
    middle = profile - profile.mean()
    tilt = float((middle * columns).sum() / columns.square().sum())
    explained = tilt**2 * float(columns.square().sum() / middle.square().sum().clamp_min(1e-9))
    if abs(tilt) < TILT or explained < EXPLAINED:
        return None
    return 180 - SIDEWAYS if tilt > 0 else SIDEWAYS
