"""A guess at the light in a picture, its direction and hardness, for a shadow that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_image_compositing.functional.linear import LUMINANCE, to_linear
from deep_image_compositing.functional.resize import fit_long_side, resize

SIDE = 64  # long side in pixels at which a picture is looked at
TILT = 0.7  # stops by which one side is brighter than the other if the light comes from there
EXPLAINED = 0.6  # share of the columns' differences that such a tilt has to explain
GLARE = 2.5  # stops by which a light in the picture outshines its middle brightness
SMALL = 0.06  # share of the picture up to which something bright is a light, and not a sky
NARROW = 0.12  # deviation of one light's columns and rows, as a share of the picture's
SIDEWAYS = 35.0  # degrees by which a shadow beside the subject falls back
HARD, SOFT = 4.5, 1.2  # contrast of the ground in stops under hard and under soft light
LEAST, MOST = 0.2, 0.85  # softness is not guessed beyond: dark things look like hard light
PLAIN = 0.3  # contrast in stops below which a picture is plain and tells nothing


@dataclass(frozen=True)
class Light:
    """What a picture tells of its light; None for what it does not."""

    direction: float | None  # where shadows fall in degrees: 0 right, 90 away from the viewer
    softness: float | None  # from 0, a bare sun, to 1, a gray sky


def guess_light(picture: Tensor) -> Light:
    """The light of ``picture`` (3, H, W), sRGB in [0, 1].

    A small light in its upper part throws shadows towards the viewer; else it comes from a clearly
    brighter side. How hard it is shows in the contrast of the lower half, where the ground is.
    """
    size = fit_long_side(picture.shape[-2], picture.shape[-1], SIDE)
    small = resize(picture[None].float(), size)[0].clamp(0, 1)
    weights = small.new_tensor(LUMINANCE)[:, None, None]
    stops = ((to_linear(small) * weights).sum(0) + 0.004).log2()
    low, high = stops.flatten().quantile(stops.new_tensor([0.05, 0.95])).tolist()
    if min(size) < 4 or high - low < PLAIN:
        return Light(None, None)
    direction = _against(stops)
    if direction is None:
        direction = _aside(stops)
    ground = stops[size[0] // 2 :].flatten()
    low, high = ground.quantile(ground.new_tensor([0.1, 0.9])).tolist()
    softness = (HARD - (high - low)) / (HARD - SOFT)
    return Light(direction, min(MOST, max(LEAST, softness)))


def _against(stops: Tensor) -> float | None:
    """Where shadows fall if a light is in the picture; None without one."""
    height, width = stops.shape
    upper = stops[: max(1, round(0.7 * height))]
    bright = float(upper.max())
    rows, columns = (upper > bright - 0.7).nonzero(as_tuple=True)
    if bright < -1 or bright - float(stops.median()) < GLARE or len(rows) > SMALL * stops.numel():
        return None
    places = torch.stack([rows / height, columns / width]).double()
    if places.std(1, correction=0).max() > NARROW:
        return None
    at = (float(columns.double().mean()) + 0.5) / width - 0.5
    return math.degrees(math.atan2(-1.0, -2 * at)) % 360


def _aside(stops: Tensor) -> float | None:
    """Where shadows fall if one side is brighter; None if none clearly is."""
    profile = stops.mean(0)
    columns = (torch.arange(len(profile)) + 0.5) / len(profile) - 0.5
    middle = profile - profile.mean()
    tilt = float((middle * columns).sum() / columns.square().sum())
    explained = tilt**2 * float(columns.square().sum() / middle.square().sum().clamp_min(1e-9))
    if abs(tilt) < TILT or explained < EXPLAINED:
        return None
    return 180 - SIDEWAYS if tilt > 0 else SIDEWAYS
